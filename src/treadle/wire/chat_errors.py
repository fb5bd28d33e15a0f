"""What an error of an OpenAI-compatible server means.

Every row has its source: a capture under tests/captures, or the wording that users of a server report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from treadle.errors import (
    AuthenticationFailed,
    BadStream,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ServerError,
)
from treadle.wire.untyped import object_, string

__all__ = ["error_from_object", "error_from_response"]

_OVERFLOW = re.compile(
    r"exceeds the available context size"  # llama.cpp (captured), LiteLLM in front of it (captured)
    r"|maximum context length"  # vLLM (captured), OpenAI
    r"|context_length_exceeded"  # OpenAI
    r"|context length of only|trying to keep the first \d+ tokens"  # LM Studio (reported)
    r"|input length exceeds the context|prompt is too long"  # Ollama, Anthropic-like gateways (reported)
    r"|ContextWindowExceeded",  # LiteLLM (captured)
    re.IGNORECASE,
)
_OVERFLOW_TYPES = {"exceed_context_size_error", "context_length_exceeded"}

_STATUS: dict[int, type[ModelError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    403: AuthenticationFailed,
    404: ModelNotFound,
    408: ServerError,
    413: ContextOverflow,
    422: InvalidRequest,
    429: RateLimited,
    500: ServerError,
    502: Overloaded,
    503: Overloaded,
    504: Overloaded,
    529: Overloaded,
}


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
    """The error that a response with a status other than 200 means."""
    said = body.decode("utf-8", "replace").strip()
    detail: Any = None
    try:
        parsed = object_(msgspec.json.decode(body))
        detail = parsed.get("error", parsed)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if 300 <= status < 400:
        return BadStream(
            f"{address} answered with a redirect (HTTP {status}), which is never followed because it could carry the key away",
            hint="Use the address it redirects to (in `server_said`).",
            status=status,
            server_said=headers.get("Location", ""),
        )
    error = _classify(status, detail, said)
    return error(
        f"{address} answered HTTP {status}",
        hint=_hint(error, status),
        status=status,
        retry_after_s=_retry_after_s(headers),
        server_said=said,
    )


def error_from_object(detail: Any, *, status: int | None = None) -> ModelError:
    """The error that an error object inside a stream, or in the body of a 200, means.

    Captured: `{"message", "type", "code": 400}` (vLLM), the same with `"code": "500"` as a string (LiteLLM).
    """
    said = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    code = object_(detail).get("code")
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    error = _classify(status or 500, detail, said)
    return error("the server sent an error instead of (the rest of) its answer", status=status, server_said=said)


def _classify(status: int, detail: Any, said: str) -> type[ModelError]:
    fields = object_(detail)
    kinds = {string(fields.get("type")), string(fields.get("code"))}
    if kinds & _OVERFLOW_TYPES or fields.get("param") == "input_tokens":  # vLLM (captured)
        return ContextOverflow
    if "rate_limit_exceeded" in kinds:
        return RateLimited
    if status < 500 and status != 429 and _OVERFLOW.search(said[:4000]):
        return ContextOverflow
    return _STATUS.get(status) or (ServerError if status >= 500 else InvalidRequest)


def _hint(error: type[ModelError], status: int) -> str:
    if error is ModelNotFound:
        return "Is the model's name one that `GET /v1/models` lists, and does the address end in /v1? `server_said` has the server's words."
    return ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None
