"""What a model is asked, and what it answers, without any provider's words."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from treadle.values.limits import Timeouts
from treadle.values.messages import AssistantMessage, Message
from treadle.values.usage import Usage

__all__ = [
    "Finish",
    "ModelInfo",
    "ModelRequest",
    "Omission",
    "Options",
    "OutputSchema",
    "PrefixMove",
    "Reply",
    "SchemaSupport",
    "ToolSpec",
]

Finish: TypeAlias = Literal["end", "tool_use", "length", "refused", "pause", "unknown"]
"""Why a turn stopped. `unknown`: the server gave a reason we do not know, kept in `Reply.finish_said`."""


SchemaSupport: TypeAlias = Literal["with_tools", "alone", "none"]
"""What a server may be sent a schema for its answer with: tools too; no tools, because it would stop calling them or refuse; or
nothing, and the model is asked in words."""


class ToolSpec(Struct, frozen=True, kw_only=True):
    """A tool as the model sees it. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class OutputSchema(Struct, frozen=True, kw_only=True):
    """The form an answer must have.

    Attributes:
        name: For formats that want one: letters, digits, `_` and `-`, at most 64.
        schema: A JSON Schema of type object.
    """

    name: str
    schema: dict[str, Any]


class Omission(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Something that a request leaves out, because the format or the server has no place for it.

    Attributes:
        what: The option's name, or a kind of part: `reasoning`, `signature`, `part`, `images`.
        why: One sentence, without anything of the conversation.
        count: How many parts.
    """

    what: str
    why: str
    count: int = 1


class PrefixMove(Struct, frozen=True, kw_only=True, gc=False):
    """A request does not begin as the one before it did, so a server's cache serves less of it.

    Attributes:
        component: What moved first: the system text, a tool, or something of a message, by the message's place in the request.
        byte: Where: the first byte that differs, counted from 0 through the tools, the system text and the messages.
        lost_share: The part of this request that was sent before and stands behind that byte.
    """

    component: str
    byte: int
    lost_share: float


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling and request options. None means: not sent, the server decides.

    Attributes:
        max_tokens: The server's own bound on output tokens of one turn.
        stop: Texts that end the turn.
        reasoning: How hard to think; None: the server decides.
        tool_choice: `auto`, `none`, `required`, or a tool's name. Some servers ignore it.
        cache_ttl: How long a cache that is marked in requests keeps them (Anthropic's); None: 5 minutes. An hour costs more to write.
        extra_body: Fields added to the request's JSON as they are.
        extra_headers: Headers added to the request.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reasoning: Literal["off", "low", "medium", "high"] | None = None
    tool_choice: str | None = None
    cache_ttl: Literal["5m", "1h"] | None = None
    extra_body: dict[str, Any] = {}
    extra_headers: dict[str, str] = {}

    def __repr__(self) -> str:
        """Headers may carry secrets: their names are shown, their values are not."""
        shown = {f: v for f in self.__struct_fields__ if (v := getattr(self, f)) and f != "extra_headers"}
        if self.extra_headers:
            shown["extra_headers"] = dict.fromkeys(self.extra_headers, "***")
        return f"Options({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class ModelRequest(Struct, frozen=True, kw_only=True):
    """One model turn to be made.

    Attributes:
        turn: Counts from 1 within a run.
        attempt: Counts from 1 within a turn.
        continues: A partial answer to this turn that the model is asked to go on from; the reply is what follows it.
        output: The form of the answer, for servers that can be held to one (`SchemaSupport`).
        run_id: Names the run; ids that we make for calls are derived from it.
        revision: Requests of one run and revision differ in that a later one may have more messages, behind the same. None: not known.
        window_tokens: The context window that the run plans with, once it does. Ollama is told; other servers cannot be.
        timeouts: Deadlines of this call.
    """

    messages: tuple[Message, ...]
    instructions: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    options: Options = Options()
    output: OutputSchema | None = None
    run_id: str = ""
    revision: int | None = None
    turn: int = 1
    attempt: int = 1
    continues: AssistantMessage | None = None
    window_tokens: int | None = None
    timeouts: Timeouts = Timeouts()


class Reply(Struct, frozen=True, kw_only=True):
    """A model turn, as far as it came.

    Attributes:
        finish: Why the server stopped; None while it has not said, and then this is no finished turn.
        finish_said: The server's own word for it.
        usage: Tokens as the server counted them; fields it did not report are None.
        model: The model's name as the server gave it.
    """

    message: AssistantMessage
    finish: Finish | None = None
    finish_said: str | None = None
    usage: Usage = Usage()
    model: str | None = None


class ModelInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a served model.

    Attributes:
        model: The name to ask for.
        server: The kind of server: `llamacpp`, `ollama`, `lmstudio`, `vllm`, or `openai-compatible`.
        window_tokens: Context window of one conversation; None if the server does not say.
        window_source: Where that number was read, as `GET /path field`; without a number, what was said instead of it.
        max_window_tokens: What the model could be served with. Never what it is served with: plans are not made with it.
        window_on_request: Nobody has set the window, and the server loads the model with the one that a request names
            (`ModelRequest.window_tokens`).
        abilities: Of `tools`, `vision`, `thinking`, `embedding`, as far as the server says.
        loaded: The model is in memory now; None if the server does not say.
    """

    model: str
    server: str
    window_tokens: int | None = None
    window_source: str | None = None
    max_window_tokens: int | None = None
    window_on_request: bool = False
    abilities: frozenset[str] = frozenset()
    loaded: bool | None = None
