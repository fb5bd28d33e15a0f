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
from treadle.wire.overflow import is_overflow, made, server_words, words_of_body
from treadle.wire.untyped import array, object_, string

__all__ = ["error_from_object", "error_from_response"]

_OVERFLOW_TYPES = {"exceed_context_size_error", "context_length_exceeded"}

_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}  # OpenAI (documented)
_REFUSED = {"content_policy_violation", "content_filter", "ResponsibleAIPolicyViolation"}  # OpenAI, Azure (documented)
_NO_MODEL = re.compile(r"Invalid model name passed in model=", re.IGNORECASE)  # LiteLLM, HTTP 400 (captured: err-unknown-model)
_NO_DATABASE = "no_db_connection"  # LiteLLM without a database, HTTP 400: the key is not its master key (seen)
_UNSUPPORTED = re.compile(
    r"image input is not supported"  # llama.cpp without a projector, HTTP 500 (seen)
    r"|is not a multimodal model|At most 0 image"  # vLLM (captured: err-image), HTTP 400
    r"|does not support (tools|thinking|images)"  # Ollama (reported), HTTP 400
    r"|unknown variant `?image_url`?, expected `?text\b",  # DeepSeek (reported: nesquena/hermes-webui#2297), HTTP 400
    re.IGNORECASE,
)
_SHARED = (
    "Conversations that run at once share the server's context and filled it: run fewer at once, serve the model with a larger "
    "context, or give each its own part of it (llama.cpp: set -np)."
)
_NO_KEY = re.compile(r"Incorrect( |%20)API( |%20)key( |%20)provided", re.IGNORECASE)
"""xAI, HTTP 400 (reported: continuedev/continue#10778; with %20: i-am-bee/beeai-framework#447). OpenAI says it with a 401."""
_CACHE_FULL = re.compile(r"Context size has been exceeded", re.IGNORECASE)
"""llama.cpp, HTTP 500 or in the stream (seen): docs/protocols/chat.md, "Overflow"."""
_SPENT = {
    "openrouter_guardrail_budget",
    "openrouter_workspace_budget",
    "openrouter_key_limit",
}  # OpenRouter, HTTP 403 (documented)

# Captured: a file under tests/captures. Documented: the provider's list of error codes, read 2026-11. RFC: RFC 9110 or 6585.
_STATUS: dict[int, type[ModelError]] = {
    400: InvalidRequest,  # llama.cpp, vLLM, LiteLLM (captured)
    401: AuthenticationFailed,  # llama.cpp with a key set (seen), OpenAI (documented)
    402: QuotaExceeded,  # OpenRouter, DeepSeek (documented)
    403: AuthenticationFailed,  # OpenAI: country or project not allowed (documented)
    404: ModelNotFound,  # vLLM: unknown model (captured); llama.cpp: unknown path or method (captured)
    405: Unsupported,  # LiteLLM: another method (captured)
    408: ServerError,  # RFC: the server gave up on the request; it may be sent again
    413: ContextOverflow,  # RFC; proxies in front of model servers: of bytes, but the cure is the same, a shorter request
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
    words = words_of_body(said)
    error = _classify(status, detail, words)
    return made(
        error,
        f"{address} answered HTTP {status}",
        said=words,
        hint=_hint(error, detail),
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
    words = words_of_body(detail) if isinstance(detail, str) else server_words(detail)
    error = _classify(status, detail, words)
    message = "the server sent an error instead of (the rest of) its answer"
    return made(error, message, said=words, hint=_hint(error, detail), status=status, server_said=said)


def _classify(named: int | None, detail: Any, said: str) -> type[ModelError]:
    """What it is; `named` is the status, or None inside a stream that names none. `said` are the server's own words."""
    fields, status = object_(detail), named or 500
    kinds = {string(fields.get("type")), string(fields.get("code"))}
    if kinds & _OVERFLOW_TYPES or fields.get("param") == "input_tokens":  # vLLM (captured)
        return ContextOverflow
    if kinds & _QUOTA:
        return QuotaExceeded
    if kinds & _REFUSED:
        return ContentRefused
    if kind := _by_openrouter(status, object_(fields.get("metadata"))):
        return kind
    if is_overflow(status, said):
        return ContextOverflow
    if "rate_limit_exceeded" in kinds:
        return RateLimited
    if _UNSUPPORTED.search(said):
        return Unsupported
    if _is_cache_full(detail):
        # LM Studio says the same words of a prompt that is too long.
        is_shared = named == 500 or "server_error" in said
        return Overloaded if is_shared else ContextOverflow
    if _NO_DATABASE in kinds or (status == 400 and _NO_KEY.match(_message(detail))):
        return AuthenticationFailed
    if status == 498 and "capacity_exceeded" in kinds:  # Groq: the flex tier is full (documented); elsewhere 498 is a bad token
        return Overloaded
    if status == 400 and _NO_MODEL.search(said):
        return ModelNotFound
    return _STATUS.get(status) or (ServerError if status >= 500 else InvalidRequest)


def _by_openrouter(status: int, metadata: dict[str, Any]) -> type[ModelError] | None:
    """What the fields say that OpenRouter documents for its own refusals (openrouter.ai/docs, errors and debugging)."""
    limit = string(metadata.get("limit_source"))
    if status == 402 and limit == "openrouter_in_flight_budget":
        return RateLimited  # until requests that are under way are paid for; other 402s are for good
    if status == 403 and limit in _SPENT:
        return QuotaExceeded
    if status == 403 and array(metadata.get("reasons")):
        return ContentRefused  # by a moderation
    return None


def _message(detail: Any) -> str:
    return detail if isinstance(detail, str) else string(object_(detail).get("message"))


def _is_cache_full(detail: Any) -> bool:
    return _CACHE_FULL.search(server_words(detail)[:400]) is not None


def _hint(error: type[ModelError], detail: Any) -> str:
    if error is Overloaded and _is_cache_full(detail):
        return _SHARED
    if error is AuthenticationFailed and object_(detail).get("type") == _NO_DATABASE:
        return "LiteLLM answers so to a key that is not its master key, if it has no database of keys. Check the API key."
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
