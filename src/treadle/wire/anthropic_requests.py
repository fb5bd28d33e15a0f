"""Anthropic Messages requests: a conversation to bytes. What is sent and why: docs/protocols/anthropic.md."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from treadle.values.messages import (
    AssistantMessage,
    Document,
    Image,
    Message,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from treadle.values.request import ModelRequest, SchemaSupport, ToolSpec
from treadle.wire.anthropic_blocks import FORMAT
from treadle.wire.encoder import PART, REASONING, SIGNATURE, Pieces, RunEncoder
from treadle.wire.parts import base64_text, is_text, named, raw_object, result_text, tidied, with_extra_body
from treadle.wire.schemas import closed

__all__ = ["ANTHROPIC_API", "AnthropicDialect", "AnthropicEncoder", "max_tokens_sent"]


class AnthropicDialect(Struct, frozen=True, kw_only=True):
    """How requests to one kind of server or model differ.

    Attributes:
        thinking: How `Options.reasoning` is asked for: `budget` (`thinking.budget_tokens`; models up to Claude 4.5, llama.cpp) or
            `adaptive` (`output_config.effort`; newer models, which refuse a budget).
        unsigned_thinking: Send reasoning back whose signature is empty, as llama.cpp's is. Anthropic's own API refuses it.
        cache: Place `cache_control` markers. None: if the model is a Claude that takes them, by its name.
        max_tokens: `max_tokens` where the options have none, since the format demands it. A thinking budget is added to it.
        sampling: The model takes `temperature` and `top_p`. Claude Opus 4.7 and later refuse both.
        schema_support: What a schema for the answer may be sent with. Servers other than Anthropic's are not known to take one:
            llama.cpp ignores it, and then the model knows of none.
        bearer: The key goes out as `Authorization: Bearer`, too. vLLM reads no other; Anthropic's own API refuses it.
    """

    thinking: Literal["budget", "adaptive"] = "budget"
    unsigned_thinking: bool = True
    cache: bool | None = None
    max_tokens: int = 8_192
    sampling: bool = True
    schema_support: SchemaSupport = "none"
    bearer: bool = False


ANTHROPIC_API = AnthropicDialect(thinking="adaptive", unsigned_thinking=False, schema_support="with_tools")
"""Anthropic's own API with a current model. For models that know only budgets: `thinking="budget"`."""

_BUDGET = {"low": 2_048, "medium": 8_192, "high": 24_576}
_MIN_BUDGET = 1_024  # documented
_MARKERS = {
    None: b',"cache_control":{"type":"ephemeral"}',
    "5m": b',"cache_control":{"type":"ephemeral","ttl":"5m"}',
    "1h": b',"cache_control":{"type":"ephemeral","ttl":"1h"}',
}
_MAX_MARKERS = 4  # documented
_REACH = 15
"""How many blocks before a marker the server is counted on to find what was cached. Documented are 19; counting on fewer costs
nothing, and does no harm where blocks are counted otherwise."""
_OURS = frozenset({"model", "messages", "system", "tools", "stream"})
_MERGED = ("output_config",)
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}

_encode = msgspec.json.Encoder().encode


class AnthropicEncoder(RunEncoder):
    """Write the requests of one run (`RunEncoder`); cache markers are all that moves in what was written.

    Neighbouring messages of one role are one message of the request: the results of a turn and what the user says after them
    too, as the API demands. So the last message written stays open until another role follows.
    """

    def __init__(self, model: str, dialect: AnthropicDialect) -> None:
        super().__init__()
        self._model = model
        self._dialect = dialect
        self._cache = _takes_markers(model) if dialect.cache is None else dialect.cache

    def _restart(self) -> None:
        super()._restart()
        self._role = ""  # of the last message, which is open
        self._blocks = 0
        # Of each of the user's messages, its last block: where it ends, just before its closing brace, and its number.
        self._ends: list[tuple[int, int]] = []
        self._ids: dict[str, str] = {}  # of the calls of the last turn: as they are in the history -> as they are sent
        self._used: set[str] = set()

    def _encode(self, request: ModelRequest) -> Pieces:
        known = self._known(request)
        system = [request.instructions] if request.instructions else []
        first = request.messages[0] if request.messages else None
        if isinstance(first, SystemMessage):
            if first.content:
                system.append(first.content)
            known = max(known, 1)
        theirs = "cache_control" in request.options.extra_body  # the API places markers itself then, and refuses a fifth
        marker = _MARKERS[request.options.cache_ttl] if self._cache and not theirs else b""
        if not self._cache and request.options.cache_ttl is not None:
            self._leave_out("cache_ttl", "This model is not known to take cache markers.")
        head = self._head(request, system, marker)
        for message in request.messages[known:]:
            self._write_message(message)
        self.prefix.end = b"]}" if self._written else b""
        left = _MAX_MARKERS - bool(request.tools) - bool(system)
        return (head, b',"messages":[', *self._marked(marker, left), b"]}]}" if self._written else b"]}")

    def _marked(self, marker: bytes, count: int) -> Iterator[bytes | memoryview]:
        """The messages with up to `count` cache markers, each on the last block of one of the user's messages.

        The last is what the next request will read from the cache. It looks back for that from each of its own markers, but not
        far. So the others are where the last one cannot reach: on the nearest message of the user's beyond. After a turn with
        many blocks that is the one where the request before this ended.
        """
        places: list[int] = []
        reached = 0  # the first block that is
        for end, number in reversed(self._ends if marker else []):
            if not places or number < reached:
                places.append(end)
                reached = number - _REACH
                if len(places) == count:
                    break
        begin, written = 0, memoryview(self._written)
        for end in reversed(places):
            yield written[begin:end]
            yield marker
            begin = end
        yield written[begin:]

    def _write_message(self, message: Message) -> None:
        if isinstance(message, AssistantMessage):
            self._write("assistant", self._assistant(message))
        elif isinstance(message, ToolMessage):
            self._write("user", [_result(message, self._ids.get(message.call_id) or _id(message.call_id))])
        elif isinstance(message, UserMessage):
            blocks = [_attachment(each) for each in message.attachments]
            if message.content or not blocks:
                blocks.append({"type": "text", "text": message.content})
            self._write("user", blocks)
        else:
            self._leave_out("system", "The format has no system message but the first: later ones go as the user's.")
            self._write("user", [{"type": "text", "text": message.content}])

    def _write(self, role: str, blocks: list[Any]) -> None:
        if not blocks:
            return  # a message that says nothing, or nothing that may go to this server: strict servers refuse it
        items = b",".join(map(_encode, blocks))
        if role == self._role:
            self._written += b","
        else:
            if self._written:
                self._written += b"]},"
            self._written += b'{"role":"%s","content":[' % role.encode()
            self._role = role
            if role == "user":
                self._ends.append((0, 0))
        self._written += items
        self._blocks += len(blocks)
        if role == "user":
            self._ends[-1] = (len(self._written) - 1, self._blocks)

    def _assistant(self, message: AssistantMessage) -> list[Any]:
        self._ids = {}
        blocks: list[Any] = []
        for part in message.content:
            if isinstance(part, Text):
                if part.text.strip():  # the API refuses text that is empty or all blanks, though its models write it
                    blocks.append({"type": "text", "text": part.text})
            elif isinstance(part, ToolCall):
                if part.signature:
                    self._leave_out("signature", SIGNATURE)
                called = raw_object(part.arguments) or msgspec.Raw(b"{}")
                blocks.append({"type": "tool_use", "id": self._call_id(part.id), "name": named(part.name), "input": called})
            elif isinstance(part, Thinking):
                if part.source == "block" and self._is_ours(part.signature):
                    blocks.append({"type": "thinking", "thinking": part.text, "signature": part.signature})
                else:
                    self._leave_out("reasoning", REASONING)
            elif part.format == FORMAT and (data := raw_object(part.data)):
                blocks.append(data)
            else:
                self._leave_out("part", PART)
        return blocks

    def _is_ours(self, signature: str | None) -> bool:
        """The signature is base64, as this format's are; others bring a mark, such as `gemini:`."""
        if not signature:
            return signature == "" and self._dialect.unsigned_thinking
        return ":" not in signature

    def _call_id(self, id: str) -> str:
        """The id to send: one that the API takes, and that no earlier call of the request has."""
        sent = base = _id(id)
        n = 1
        while sent in self._used:
            n += 1
            sent = f"{base}_{n}"
        if sent != id:
            self._leave_out("id", "The format does not take an id of this form, or one twice: call and result get another.")
        self._used.add(sent)
        self._ids[id] = sent
        return sent

    def _head(self, request: ModelRequest, system: list[str], marker: bytes) -> bytes:
        pieces = [_encode({"model": self._model, "stream": True, **self.options(request)})[:-1]]
        tools = self._tools(request, _tool)
        said = self.prefix.system = _encode([{"type": "text", "text": text} for text in system]) if system else b""
        for name, blocks in ((b"tools", tools), (b"system", said)):
            if blocks:  # the last is marked
                pieces += [b',"%s":' % name, blocks[:-2], marker, b"}]"]
        return b"".join(pieces)

    def options(self, request: ModelRequest) -> dict[str, Any]:
        """The fields of the body that come from the request's options."""
        options = request.options
        fields: dict[str, Any] = {
            "max_tokens": self._dialect.max_tokens if options.max_tokens is None else options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop_sequences": list(options.stop) or None,
            "tool_choice": self._choice(request),
        }
        if options.seed is not None:
            self._leave_out("seed", "The format has no seed.")
        fields |= self._reasoning(request)
        thinks = fields.get("thinking", {}).get("type") in ("enabled", "adaptive")
        # With thinking only a temperature of 1 is allowed, which is the default.
        for name, is_refused in (("temperature", thinks), ("top_p", thinks and (options.top_p or 1) < 0.95)):
            if fields[name] is not None and (is_refused or not self._dialect.sampling):
                fields[name] = None
                self._leave_out(
                    name, "The model does not take it while it thinks." if is_refused else "The model does not take it."
                )
        if request.output is not None:
            if self._dialect.schema_support == "none":
                self._leave_out_schema()
            else:
                form = {"type": "json_schema", "schema": closed(request.output.schema)}
                fields["output_config"] = {**fields.get("output_config", {}), "format": form}
        return with_extra_body(fields, options, ours=_OURS, merged=_MERGED)

    def _choice(self, request: ModelRequest) -> dict[str, Any] | None:
        choice = request.options.tool_choice
        if choice is None:
            return None
        if not request.tools:  # refused without
            self._leave_out_choice(choice)
            return None
        return {"type": _CHOICES[choice]} if choice in _CHOICES else {"type": "tool", "name": choice}

    def _reasoning(self, request: ModelRequest) -> dict[str, Any]:
        """The fields that ask for reasoning; with a budget `max_tokens` too, which must be larger."""
        options = request.options
        if options.reasoning is None:
            return {}
        if options.reasoning == "off":
            return {"thinking": {"type": "disabled"}}
        if request.tools and options.tool_choice not in (None, "auto", "none"):
            self._leave_out("reasoning", "The API allows no thinking with a tool_choice that forces a call.")
            return {}
        if self._dialect.thinking == "adaptive":
            return {"thinking": {"type": "adaptive"}, "output_config": {"effort": options.reasoning}}
        budget = _BUDGET[options.reasoning]
        if options.max_tokens is None:
            return {"max_tokens": self._dialect.max_tokens + budget, "thinking": {"type": "enabled", "budget_tokens": budget}}
        budget = min(budget, options.max_tokens * 3 // 4)  # the rest is for the answer
        if budget < _MIN_BUDGET:
            self._leave_out("reasoning", "max_tokens leaves too few tokens to think with.")
            return {}
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _takes_markers(model: str) -> bool:
    """It is a Claude of the third generation or later, whatever a gateway puts around its name. Other servers have no use for
    markers, and one that is strict may refuse them."""
    return "claude" in model.lower() and not re.search(r"claude-(?:v?[12]\b|instant)", model.lower())


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def max_tokens_sent(request: ModelRequest, dialect: AnthropicDialect) -> int | None:
    """`max_tokens` as the request goes out with it: a default and a thinking budget included."""
    said = AnthropicEncoder("", dialect).options(request).get("max_tokens")
    return said if type(said) is int else None


def _attachment(attached: Image | Document) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "image" if isinstance(attached, Image) else "document", "source": {}}
    text = _text_of(attached) if isinstance(attached, Document) else None
    if text is not None:
        block["source"] = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        block["source"] = {"type": "base64", "media_type": attached.media_type, "data": base64_text(attached)}
    if isinstance(attached, Document) and attached.name:
        block["title"] = attached.name
    return block


def _text_of(document: Document) -> str | None:
    """A document's text, if it is one: the API takes text only as text, and only PDF as bytes."""
    try:
        return document.data.decode() if is_text(document) else None
    except UnicodeDecodeError:
        return None


def _result(message: ToolMessage, id: str) -> dict[str, Any]:
    text = result_text(message, flagged=True)
    if message.is_error and not text:
        text = "The call failed."  # the API refuses an error that says nothing
    content: Any = text
    if message.images:
        content = [{"type": "text", "text": text}] if text else []
        content += [_attachment(image) for image in message.images]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": id, "content": content}
    if message.is_error:
        block["is_error"] = True
    return block


def _id(id: str) -> str:
    """An id of letters, digits, `_` and `-`, which is all the API takes; another one is mended, and stays its own."""
    mended = tidied(id)
    return id if mended == id and id else f"{mended}_{zlib.crc32(id.encode('utf-8', 'replace')):08x}"
