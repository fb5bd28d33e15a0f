"""What an error of an OpenAI-compatible server means.

Every row has its source: a capture under tests/captures, or the wording that users of a server report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from treadle.errors import (
    AuthenticationFailed,
    BadStream,
    ContentRefused,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    ServerError,
    Unsupported,
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

_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}  # OpenAI (documented)
_REFUSED = {"content_policy_violation", "content_filter", "ResponsibleAIPolicyViolation"}  # OpenAI, Azure (documented)
_UNSUPPORTED = re.compile(
    r"image input is not supported"  # llama.cpp without a projector, HTTP 500 (seen)
    r"|is not a multimodal model|At most 0 image"  # vLLM (captured: err-image), HTTP 400
    r"|does not support (tools|thinking|images)",  # Ollama (reported), HTTP 400
    re.IGNORECASE,
)

# Captured: a file under tests/captures. Documented: the provider's list of error codes, read 2026-11. RFC: RFC 9110 or 6585.
_STATUS: dict[int, type[ModelError]] = {
    400: InvalidRequest,  # llama.cpp, vLLM, LiteLLM (captured)
    401: AuthenticationFailed,  # llama.cpp with a key set (seen), OpenAI (documented)
    402: QuotaExceeded,  # OpenRouter, DeepSeek (documented)
    403: AuthenticationFailed,  # OpenAI: country or project not allowed (documented)
    404: ModelNotFound,  # vLLM: unknown model (captured); llama.cpp: unknown path or method (captured)
    405: Unsupported,  # LiteLLM: another method (captured)
    408: ServerError,  # RFC: the server gave up on the request; it may be sent again
    413: ContextOverflow,  # RFC; proxies in front of model servers
    422: InvalidRequest,  # FastAPI servers: validation (reported)
    429: RateLimited,  # RFC 6585, OpenAI (documented)
    500: ServerError,  # llama.cpp: arguments in the history that are no JSON (captured)
    501: Unsupported,  # RFC
    502: Overloaded,  # RFC: a proxy whose server does not answer
    503: Overloaded,  # llama.cpp while it loads its model, OpenAI (documented)
    504: Overloaded,  # RFC: a proxy whose server is too slow
    529: Overloaded,  # Anthropic-like gateways (documented)
}


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
    """The error that a response with a status other than 200 means."""
    said = body.decode("utf-8", "replace").strip()
    detail: Any = None
    try:
        parsed = object_(msgspec.json.decode(body))
        detail = parsed.get("error", parsed)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
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
    if kinds & _QUOTA:
        return QuotaExceeded
    if kinds & _REFUSED:
        return ContentRefused
    if "rate_limit_exceeded" in kinds:
        return RateLimited
    if _UNSUPPORTED.search(said[:4000]):
        return Unsupported
    if status < 500 and status != 429 and _OVERFLOW.search(said[:4000]):
        return ContextOverflow
    return _STATUS.get(status) or (ServerError if status >= 500 else InvalidRequest)


def _hint(error: type[ModelError], status: int) -> str:
    if error is ModelNotFound:
        return "Is the model's name one that `GET /v1/models` lists, and does the address end in /v1? `server_said` has the server's words."
    return ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` (OpenAI) or Retry-After: seconds or a date (RFC 9110, 10.2.3).

    A date is read against the response's own Date, so that clocks need not agree.
    """
    said = headers.get("Retry-After", "")
    for text, unit_s in ((headers.get("Retry-After-Ms", ""), 0.001), (said, 1.0)):
        try:
            seconds = float(text) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        then, now = parsedate_to_datetime(said), parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError):
        return None
