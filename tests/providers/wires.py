"""The five formats as a server speaks them: a turn as bytes, and what a request has to hold.

Everything here is written out from the protocol notes (docs/protocols), not with the project's own encoders. `ChatServer` is what
one server's chunks have that another's have not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.harness import Exchange, sse
from tests.wire import test_anthropic_decode as anthropic
from tests.wire import test_gemini_decode as gemini
from tests.wire import test_ollama_decode as ollama
from tests.wire import test_responses_decode as responses

__all__ = ["IMAGE_BASE64", "Anthropic", "Call", "Chat", "ChatServer", "Gemini", "Ollama", "Responses", "Turn", "Wire"]

IMAGE_BASE64 = "R0lGOA=="
_IMAGE_URL = f"data:image/gif;base64,{IMAGE_BASE64}"
_HEADING = "[Images of the result of photo, {}]"


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """What the model says in a turn. `finish` is the server's word for its end, by default the usual one; `usage` its counts."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)


class Wire:
    """One format.

    Attributes:
        ids: Ids of calls, as this server gives them.
        conversation: The field of a request that holds the conversation.
    """

    conversation = "messages"
    ids = ("call_a", "call_b")

    def path(self, model: str) -> str:
        """Where requests go, from the address on."""
        raise NotImplementedError

    def answer(self, turn: Turn) -> Exchange:
        """The turn as this server streams it."""
        raise NotImplementedError

    def key(self, key: str) -> dict[str, str]:
        """The headers that carry the key."""
        return {"authorization": f"Bearer {key}"}

    def spoken(self, instructions: str, prompt: str) -> dict[str, Any]:
        """The fields of a request that hold instructions and what the user says."""
        return {"messages": [{"role": "system", "content": instructions}, {"role": "user", "content": prompt}]}

    def declared(self, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request that declare one tool."""
        return {"tools": [{"type": "function", "function": {"name": name, "description": description, "parameters": schema}}]}

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        """What a request holds of a turn with calls and of its results (text, failed), in the order of the calls."""
        raise NotImplementedError

    def pictured(self, prompt: str) -> Any:
        """The user's message with the image."""
        raise NotImplementedError

    def picture_result(self, id: str, text: str) -> list[Any]:
        """A result with the image."""
        raise NotImplementedError

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request that hold the answer to a schema."""
        raise NotImplementedError


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [piece for piece in (text[:middle], text[middle:]) if piece]


@dataclass(frozen=True)
class ChatServer:
    """How one server's chunks look.

    Attributes:
        thinking: The field of a delta that holds reasoning; `parts` for Mistral's content parts; None if it shows none.
        thinking_back: The field reasoning goes back in; None if it does not go back.
        first: Chunks before the answer.
        beside: Fields of each chunk and each choice, which mean nothing to us.
        whole_calls: A call comes in one delta; else its arguments come in pieces.
        one_index: Every call has the index 0.
        usage_with_reason: The counts are in the last choice's chunk; else in a chunk without choices.
        strict: `strict` is said of tools.
    """

    thinking: str | None = "reasoning_content"
    thinking_back: str | None = "reasoning_content"
    first: tuple[Any, ...] = ()
    beside: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    whole_calls: bool = False
    one_index: bool = False
    usage_with_reason: bool = False
    strict: bool = False
    ids: tuple[str, str] = ("call_a", "call_b")


class Chat(Wire):
    def __init__(self, server: ChatServer = ChatServer()) -> None:
        self.server = server
        self.ids = server.ids

    def path(self, model: str) -> str:
        return "/chat/completions"

    def chunk(self, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
        in_chunk, in_choice = self.server.beside
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **in_choice}]
        return {
            "id": "x-1",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "m",
            "choices": choices,
            **in_chunk,
            **more,
        }

    def answer(self, turn: Turn) -> Exchange:
        server = self.server
        frames: list[Any] = [*server.first, self.chunk({"role": "assistant", "content": ""})]
        for piece in _halves(turn.thinking):
            if server.thinking == "parts":
                frames.append(self.chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]}))
            else:
                assert server.thinking is not None
                frames.append(self.chunk({server.thinking: piece, "content": None}))
        frames += [self.chunk({"content": piece}) for piece in _halves(turn.text)]
        for n, call in enumerate(turn.calls):
            index = 0 if server.one_index else n
            pieces = [call.arguments] if server.whole_calls else ["", *_halves(call.arguments)]
            head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": pieces[0]}}
            frames.append(self.chunk({"tool_calls": [head]}))
            frames += [self.chunk({"tool_calls": [{"index": index, "function": {"arguments": p}}]}) for p in pieces[1:]]
        reason = turn.finish or ("tool_calls" if turn.calls else "stop")
        counted = {"usage": turn.usage} if turn.usage else {}
        if server.usage_with_reason:
            frames.append(self.chunk({}, reason, **counted))
        else:
            frames.append(self.chunk({}, reason))
            if counted:
                frames.append(self.chunk(None, **counted))
        return sse(*frames)

    def declared(self, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        function: dict[str, Any] = {"name": name, "description": description, "parameters": schema}
        if self.server.strict:
            function["strict"] = True
        return {"tools": [{"type": "function", "function": function}]}

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        called = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls]
        said: dict[str, Any] = {"role": "assistant", "content": turn.text or None, "tool_calls": called}
        back = self.server.thinking_back
        if back and (turn.thinking or back == "reasoning_content!"):
            said[back.removesuffix("!")] = turn.thinking
        texts = [f"Error: {text}" if failed else text for text, failed in results]
        return [
            said,
            *({"role": "tool", "tool_call_id": c.id, "content": t} for c, t in zip(turn.calls, texts, strict=True)),
        ]

    def pictured(self, prompt: str) -> Any:
        image = {"type": "image_url", "image_url": {"url": _IMAGE_URL}}
        return {"role": "user", "content": [image, {"type": "text", "text": prompt}]}

    def picture_result(self, id: str, text: str) -> list[Any]:
        image = {"type": "image_url", "image_url": {"url": _IMAGE_URL}}
        shown = [{"type": "text", "text": _HEADING.format(id)}, image]
        return [{"role": "tool", "tool_call_id": id, "content": text}, {"role": "user", "content": shown}]

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}}


class Responses(Wire):
    conversation = "input"

    def path(self, model: str) -> str:
        return "/responses"

    def answer(self, turn: Turn) -> Exchange:
        pieces = [responses.event("response.created", response={"id": "resp_1", "status": "in_progress", "output": []})]
        index = 0
        if turn.thinking:
            pieces.append(responses.added(0, id="rs_1", type="reasoning", summary=[]))
            pieces += [responses.summary(piece) for piece in _halves(turn.thinking)]
            pieces.append(responses.done(0, **self.reasoning(turn)))
            index = 1
        if turn.text:
            item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
            pieces.append(responses.added(index, **item, content=[]))
            pieces += [responses.text(piece, "msg_1", index) for piece in _halves(turn.text)]
            pieces.append(responses.done(index, **item, content=self.said(turn.text)))
            index += 1
        for n, call in enumerate(turn.calls):
            item = {"type": "function_call", "id": f"fc_{n}", "call_id": call.id, "name": call.name, "status": "completed"}
            pieces.append(responses.added(index + n, **item, arguments=""))
            pieces += [responses.arguments(piece, f"fc_{n}", index + n) for piece in _halves(call.arguments)]
            pieces.append(responses.done(index + n, **item, arguments=call.arguments))
        usage = {"usage": turn.usage} if turn.usage else {}
        if turn.finish in (None, "completed"):
            pieces.append(responses.ended(**usage))
        else:
            pieces.append(responses.ended("incomplete", incomplete_details={"reason": turn.finish}, **usage))
        return sse(*pieces, done=False)

    def said(self, text: str) -> list[Any]:
        return [{"type": "output_text", "text": text, "annotations": []}]

    def reasoning(self, turn: Turn) -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": turn.thinking}]
        return {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": "gAAAAB/+=="}

    def spoken(self, instructions: str, prompt: str) -> dict[str, Any]:
        return {"instructions": instructions, "input": [{"role": "user", "content": prompt}], "store": False}

    def declared(self, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        tool = {"type": "function", "name": name, "description": description, "parameters": schema, "strict": True}
        return {"tools": [tool]}

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        items: list[Any] = []
        paired = bool(turn.thinking)  # with encrypted reasoning, the ids of what it led to go back too
        if turn.thinking:
            items.append(self.reasoning(turn))
        for n, call in enumerate(turn.calls):
            head = {"id": f"fc_{n}", "status": "completed"} if paired else {}
            items.append({**head, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments})
        for call, (text, failed) in zip(turn.calls, results, strict=True):
            text = f"Error: {text}" if failed else text
            items.append({"type": "function_call_output", "call_id": call.id, "output": text})
        return items

    def pictured(self, prompt: str) -> Any:
        image = {"type": "input_image", "detail": "auto", "image_url": _IMAGE_URL}
        return {"role": "user", "content": [image, {"type": "input_text", "text": prompt}]}

    def picture_result(self, id: str, text: str) -> list[Any]:
        image = {"type": "input_image", "detail": "auto", "image_url": _IMAGE_URL}
        return [{"type": "function_call_output", "call_id": id, "output": [{"type": "input_text", "text": text}, image]}]

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"text": {"format": {"type": "json_schema", "name": name, "schema": schema, "strict": True}}}


class Anthropic(Wire):
    ids = ("toolu_01A", "toolu_01B")

    def path(self, model: str) -> str:
        return "/messages"

    def key(self, key: str) -> dict[str, str]:
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}

    def answer(self, turn: Turn) -> Exchange:
        begun = {name: n for name, n in turn.usage.items() if name != "output_tokens"} or {"input_tokens": 5}
        pieces, index = [anthropic.start(**begun, output_tokens=1), anthropic.PING], 0
        if turn.thinking:
            pieces.append(anthropic.block(0, type="thinking", thinking="", signature=""))
            pieces += [anthropic.delta(0, "thinking_delta", thinking=piece) for piece in _halves(turn.thinking)]
            pieces += [anthropic.delta(0, "signature_delta", signature="EqQBCgIYAhIM+/=="), anthropic.end(0)]
            pieces += [anthropic.block(1, type="redacted_thinking", data="EmwKAhgBEgy+/=="), anthropic.end(1)]
            index = 2
        if turn.text:
            pieces.append(anthropic.block(index, type="text", text=""))
            pieces += [anthropic.delta(index, "text_delta", text=piece) for piece in _halves(turn.text)]
            pieces.append(anthropic.end(index))
            index += 1
        for n, call in enumerate(turn.calls):
            pieces.append(anthropic.call(index + n, call.id, call.name, "", *_halves(call.arguments)))
        reason = turn.finish or ("tool_use" if turn.calls else "end_turn")
        pieces += [anthropic.stop(reason, output_tokens=turn.usage.get("output_tokens", 2)), anthropic.STOP]
        return sse(*pieces, done=False)

    def spoken(self, instructions: str, prompt: str) -> dict[str, Any]:
        return {
            "system": [{"type": "text", "text": instructions}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        }

    def declared(self, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"tools": [{"name": name, "description": description, "input_schema": schema}]}

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        blocks: list[Any] = []
        if turn.thinking:
            blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": "EqQBCgIYAhIM+/=="})
            blocks.append({"type": "redacted_thinking", "data": "EmwKAhgBEgy+/=="})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)} for call in turn.calls
        ]
        told: list[Any] = []
        for call, (text, failed) in zip(turn.calls, results, strict=True):
            told.append({"type": "tool_result", "tool_use_id": call.id, "content": text} | ({"is_error": True} if failed else {}))
        return [{"role": "assistant", "content": blocks}, {"role": "user", "content": told}]

    def pictured(self, prompt: str) -> Any:
        return {"role": "user", "content": [self.image, {"type": "text", "text": prompt}]}

    def picture_result(self, id: str, text: str) -> list[Any]:
        content = [{"type": "text", "text": text}, self.image]
        return [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": content}]}]

    image: ClassVar[dict[str, Any]] = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/gif", "data": IMAGE_BASE64},
    }

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


class Gemini(Wire):
    conversation = "contents"
    ids = ("fc-a", "fc-b")
    signature = "c2lnbmVk/+=="

    def path(self, model: str) -> str:
        return f"/models/{model}:streamGenerateContent"

    def key(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}

    def answer(self, turn: Turn) -> Exchange:
        pieces = [gemini.frame(gemini.text(piece, thought=True)) for piece in _halves(turn.thinking)]
        pieces += [gemini.frame(gemini.text(piece)) for piece in _halves(turn.text)]
        for n, call in enumerate(turn.calls):  # the first call of a step is the one that is signed
            signature = self.signature if n == 0 else None
            pieces.append(gemini.frame(gemini.call(call.name, json.loads(call.arguments), signature, id=call.id)))
        usage = {"usageMetadata": turn.usage} if turn.usage else {}
        pieces.append(gemini.frame(finish=turn.finish or "STOP", **usage))
        return sse(*pieces, done=False)

    def spoken(self, instructions: str, prompt: str) -> dict[str, Any]:
        return {
            "systemInstruction": {"parts": [{"text": instructions}]},
            "contents": [{"role": "user", "parts": [{"text": prompt}]}],
        }

    def declared(self, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        function = {"name": name, "description": description, "parametersJsonSchema": schema}
        return {"tools": [{"functionDeclarations": [function]}]}

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        parts: list[Any] = [{"text": turn.thinking, "thought": True}] if turn.thinking else []
        for n, call in enumerate(turn.calls):
            part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.name, "args": json.loads(call.arguments)}}
            parts.append(part if n else {**part, "thoughtSignature": self.signature})
        told = [
            {"functionResponse": {"id": call.id, "name": call.name, "response": {"error" if failed else "output": text}}}
            for call, (text, failed) in zip(turn.calls, results, strict=True)
        ]
        return [{"role": "model", "parts": parts}, {"role": "user", "parts": told}]

    def pictured(self, prompt: str) -> Any:
        return {"role": "user", "parts": [self.image, {"text": prompt}]}

    def picture_result(self, id: str, text: str) -> list[Any]:
        response = {"id": id, "name": "photo", "response": {"output": text}, "parts": [self.image]}
        return [{"role": "user", "parts": [{"functionResponse": response}]}]

    image: ClassVar[dict[str, Any]] = {"inlineData": {"mimeType": "image/gif", "data": IMAGE_BASE64}}

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": schema}}


class Ollama(Wire):
    ids = ("call_x1", "call_x2")

    def path(self, model: str) -> str:
        return "/api/chat"

    def answer(self, turn: Turn) -> Exchange:
        pieces = [ollama.line(thinking=piece) for piece in _halves(turn.thinking)]
        pieces += [ollama.line(piece) for piece in _halves(turn.text)]
        pieces += [ollama.line(tool_calls=[ollama.call(c.name, json.loads(c.arguments), id=c.id)]) for c in turn.calls]
        pieces.append(ollama.line(done=True, done_reason=turn.finish or "stop", **turn.usage))
        return sse(*pieces, done=False, headers={"content-type": "application/x-ndjson"})

    def round(self, turn: Turn, results: list[tuple[str, bool]]) -> list[Any]:
        called = [{"id": c.id, "function": {"name": c.name, "arguments": json.loads(c.arguments)}} for c in turn.calls]
        said: dict[str, Any] = {"role": "assistant", "content": turn.text, "tool_calls": called}
        if turn.thinking:
            said["thinking"] = turn.thinking
        told = [
            {"role": "tool", "tool_name": c.name, "tool_call_id": c.id, "content": f"Error: {text}" if failed else text}
            for c, (text, failed) in zip(turn.calls, results, strict=True)
        ]
        return [said, *told]

    def pictured(self, prompt: str) -> Any:
        return {"role": "user", "content": prompt, "images": [IMAGE_BASE64]}

    def picture_result(self, id: str, text: str) -> list[Any]:
        told = {"role": "tool", "tool_name": "photo", "tool_call_id": id, "content": text}
        return [told, {"role": "user", "content": _HEADING.format(id), "images": [IMAGE_BASE64]}]

    def held_to(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"format": schema}
