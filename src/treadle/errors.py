"""Every exception treadle raises, sorted by whose move it is.

    TreadleError
    ├── UsageError                 yours: a call, a setting or a value that cannot work
    │   ├── ToolDefinitionError    a function that cannot be offered as a tool
    │   ├── HistoryError           a conversation no server would accept
    │   └── MissingExtra           an optional part that is not installed
    ├── OutputInvalid              the model's: an answer that is not of the form that was asked for
    ├── ToolError                  a tool's: raised by tools, read by the model, never ends a run
    └── ModelError                 a model call failed
        ├── ConnectFailed          the network's: nobody answered at that address
        ├── ModelTimeout           the server's: a phase (connect, first_token, silence) took too long
        ├── StreamTruncated        the server's: the stream ended before it said why it stopped
        ├── BadStream              the server's: bytes that are not a model's answer
        ├── RateLimited            time's: wait, then ask again
        ├── Overloaded             time's: the server is busy or still loading
        ├── ServerError            the server's: it failed, for a reason of its own
        ├── AuthenticationFailed   yours: the key
        ├── QuotaExceeded          yours: the account has no money or quota left
        ├── ModelNotFound          yours: the model's name, or the address
        ├── ContextOverflow        yours: the prompt does not fit the model's window
        │   └── ContextFloorExceedsWindow   what may not be left out of it does not fit either
        ├── PromptSilentlyTruncated  the server's: it read less of the prompt than it was sent, and did not say so
        ├── ContentRefused         yours: the server's rules refuse what the request says
        ├── Unsupported            yours: the server or the model cannot do what is asked
        └── InvalidRequest         yours: the server refuses this request for good

How a healthy run may end (a turn limit, a budget, a refusal) is a value, `Ended.stop_reason`, not an exception.

Every error has a `hint`: what to do next. No `str` or `repr` holds a key, a prompt or a server's words;
what the server said is in `server_said`, for you to log or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from treadle.values.state import RunResult

__all__ = [
    "AuthenticationFailed",
    "BadStream",
    "ConnectFailed",
    "ContentRefused",
    "ContextFloorExceedsWindow",
    "ContextOverflow",
    "HistoryError",
    "InvalidRequest",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "ModelTimeout",
    "OutputInvalid",
    "Overloaded",
    "PromptSilentlyTruncated",
    "QuotaExceeded",
    "RateLimited",
    "ServerError",
    "StreamTruncated",
    "ToolDefinitionError",
    "ToolError",
    "ToolErrorKind",
    "TreadleError",
    "Unsupported",
    "UsageError",
]


class TreadleError(Exception):
    """Anything treadle raises.

    Attributes:
        message: What happened, and to what. One line.
        hint: What to do next. Never empty.
        result: When a run failed: its valid partial messages and usage (`RunResult`). Else None.
    """

    default_hint = "This is a bug in treadle: please report it with this message."

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.result: RunResult | None = None

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}"


class UsageError(TreadleError):
    """The calling code asked for something that cannot work. Retrying will not help."""

    default_hint = "Correct the call; the message names the part that cannot work."


class ToolDefinitionError(UsageError):
    """A function cannot be offered to a model as a tool."""

    default_hint = "Give every parameter a type annotation that JSON can express."


class HistoryError(UsageError):
    """A conversation breaks the rules that strict servers check: each tool call has one result, next to it."""

    default_hint = "Pass `result.messages` of an earlier run, which is always valid."


class MissingExtra(UsageError):
    """An optional part of treadle is needed and not installed."""

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra `{extra}`, which is not installed", hint=f"In treadle's directory: pip install '.[{extra}]'"
        )


class OutputInvalid(TreadleError):
    """The model's answer is not of the form that was asked for (`output=`), also after it was told what is wrong.

    Attributes:
        problem: What is wrong with it, and where. May quote the answer, so it is kept out of `str` and `repr`.
    """

    default_hint = "`problem` says what is wrong, `result.text` is the answer. Use a simpler type, or a model that can do it."

    def __init__(self, message: str, *, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem


ToolErrorKind: TypeAlias = Literal["not_found", "timeout", "network", "permission", "invalid_input", "rate_limited", "internal"]
"""What kind of failure a tool's was. `timeout`, `network` and `rate_limited` may pass: a repeatable tool is called again."""


class ToolError(TreadleError):
    """Raise this in a tool to tell the model, in your words, why the call failed.

    The run goes on: the model reads the message as the call's result, marked as an error.

    Attributes:
        kind: What kind of failure it was. After `timeout`, `network` or `rate_limited` a tool that is declared repeatable is
            called again.
        retry_after_s: For those kinds: how long to wait before that, in seconds; None for the retry policy's own wait.
    """

    default_hint = "The model reads this message and decides what to do next."

    def __init__(
        self, message: str, *, hint: str = "", kind: ToolErrorKind = "internal", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind: ToolErrorKind = kind
        self.retry_after_s = retry_after_s


class ModelError(TreadleError):
    """A model call failed. Retry policy looks at these attributes and at nothing else.

    Attributes:
        retryable: The same request may succeed later.
        retry_after_s: Seconds the server asked us to wait; None if it did not say.
        status: HTTP status, if there was one.
        server_said: The server's own words, at most 2,000 characters; None if it said nothing.
            May quote your prompt, so it is kept out of `str`, `repr` and logs.
    """

    retryable = False
    default_hint = "See `server_said` for the server's own words."

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
        server_said: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s
        self.server_said = server_said[:2000] if server_said is not None else None


class ConnectFailed(ModelError):
    """Nobody answered at the server's address: refused, reset, unknown host, or a TLS failure."""

    retryable = True
    default_hint = "Is the server running, and is the address right?"


class ModelTimeout(ModelError):
    """A phase of a model call took longer than its limit.

    Attributes:
        phase: `connect`; `first_token` (sent, but nothing that means anything came back); `silence`
            (the stream began, then nothing that means anything came; keep-alive comments do not count).
        limit_s: The limit that was reached, in seconds.
    """

    retryable = True

    def __init__(self, phase: Literal["connect", "first_token", "silence"], limit_s: float, *, address: str) -> None:
        message, hint = {
            "connect": (
                f"no connection to {address} within {limit_s:g} s",
                "Is the address right and reachable? Raise `Timeouts.connect_s` for a slow network.",
            ),
            "first_token": (
                f"{address} took the request but sent no token within {limit_s:g} s",
                "A long prompt on a slow machine needs longer: raise `Timeouts.first_token_s`, or use a smaller model.",
            ),
            "silence": (
                f"{address} began to answer, then sent no token for {limit_s:g} s",
                "The server may have stalled: look at its log, or raise `Timeouts.silence_s`.",
            ),
        }[phase]
        super().__init__(message, hint=hint)
        self.phase = phase
        self.limit_s = limit_s


class StreamTruncated(ModelError):
    """The stream ended before the server said why it stopped. A partial reply is not a reply."""

    retryable = True
    default_hint = "The server or a proxy cut the stream: look at the server's log (out of memory? killed?), then run again."


class BadStream(ModelError):
    """The server answered with something that is not a model's answer: HTML, broken JSON, a frame without end."""

    default_hint = "Is this the address of a model server's OpenAI-compatible API (usually ending in /v1)?"


class RateLimited(ModelError):
    """HTTP 429, or an error object that says so."""

    retryable = True
    default_hint = "Wait, lower the number of parallel runs, or raise the limit with your provider."


class Overloaded(ModelError):
    """The server is busy or still loading its model (HTTP 503, 529)."""

    retryable = True
    default_hint = "Wait until the model is loaded or the load is lower, then run again."


class ServerError(ModelError):
    """The server failed for a reason of its own (HTTP 5xx, or an error object in the stream)."""

    retryable = True
    default_hint = "Look at the server's log; `server_said` has its words."


class AuthenticationFailed(ModelError):
    """HTTP 401 or 403."""

    default_hint = "Check the API key: pass `api_key=` or set the provider's environment variable."


class QuotaExceeded(ModelError):
    """HTTP 402, or a 429 that says that the account's quota is used up. Waiting does not help."""

    default_hint = "Add credit or raise the quota with your provider, or name a fallback model."


class ContentRefused(ModelError):
    """The server's rules refuse what the request says. (A refusal in the answer is the stop reason `refused`.)"""

    default_hint = "Rephrase the request; `server_said` may name the rule."


class Unsupported(ModelError):
    """The server or the model cannot do what is asked: no tools, no images, no such endpoint (HTTP 405, 501)."""

    default_hint = "Leave out what the model cannot do, or use another one; `server_said` names it."


class ModelNotFound(ModelError):
    """HTTP 404: the server does not know the model, or nothing is served at that path."""

    default_hint = "Check the model's name against `GET /v1/models`, and that the address ends in /v1."


class ContextOverflow(ModelError):
    """The prompt does not fit the model's context window.

    Attributes:
        window_tokens: The window, if the server said it.
        prompt_tokens: The prompt's length, if the server said it.
    """

    default_hint = "Shorten the conversation or the tools, or serve the model with a larger context."

    def __init__(
        self, message: str, *, window_tokens: int | None = None, prompt_tokens: int | None = None, **settings: Any
    ) -> None:
        super().__init__(message, **settings)
        self.window_tokens = window_tokens
        self.prompt_tokens = prompt_tokens


class ContextFloorExceedsWindow(ContextOverflow):
    """What may not be left out of the conversation does not fit the model's window, so that no compaction can help.

    Attributes:
        floor: What it is made of: estimated tokens by component, largest first.
    """

    default_hint = "Fewer tools, shorter instructions or a shorter request are needed, or the model served with a larger context."

    def __init__(self, message: str, *, floor: Mapping[str, int] = MappingProxyType({}), **settings: Any) -> None:
        super().__init__(message, prompt_tokens=sum(floor.values()), **settings)
        self.floor = dict(floor)


class PromptSilentlyTruncated(ModelError):
    """The server cut the prompt to its window without saying so: the model answered without having seen all of it.

    No tool call of that answer was run.

    Attributes:
        read_tokens: What the server says it read.
        expected_tokens: What it was sent: counted by the server itself in the turn before, and estimated for the rest.
    """

    default_hint = (
        "Serve the model with a larger context (Ollama: OLLAMA_CONTEXT_LENGTH or num_ctx; LM Studio: the model's context length), "
        "or set ContextPolicy(window_tokens=...), --window TOKENS, to what it has, so that conversations are shortened in time."
    )

    def __init__(self, message: str, *, read_tokens: int = 0, expected_tokens: int = 0, **settings: Any) -> None:
        super().__init__(message, **settings)
        self.read_tokens = read_tokens
        self.expected_tokens = expected_tokens


class InvalidRequest(ModelError):
    """The server refuses this request; sending it again will not help (HTTP 4xx)."""

    default_hint = "`server_said` has the server's words; an option or a tool's schema may not be supported by it."
