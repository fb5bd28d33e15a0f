"""What an error of the Gemini API means: `google.rpc.Status`, with details such as RetryInfo and QuotaFailure.

What is not special to it is decided by the table of chat_errors. Sources: docs/protocols/gemini.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from treadle.errors import (
    AuthenticationFailed,
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
from treadle.wire.chat_errors import error_from_object, error_from_response
from treadle.wire.overflow import server_words
from treadle.wire.untyped import array, object_, string

__all__ = ["gemini_error_from_object", "gemini_error_from_response"]

_UNSUPPORTED = re.compile(
    r"(function calling|developer instruction|modality|thinking)\b.{0,80}\bis (not enabled|unsupported|not supported)",  # reported
    re.IGNORECASE,
)
_KEY = re.compile(r"API_KEY_INVALID|API key not valid|API key expired", re.IGNORECASE)  # a 400, reported

# Documented: google.rpc.Code and the API's own list of errors.
_STATUS: dict[str, type[ModelError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,  # no free tier in this country
    "OUT_OF_RANGE": InvalidRequest,
    "UNAUTHENTICATED": AuthenticationFailed,
    "PERMISSION_DENIED": AuthenticationFailed,
    "NOT_FOUND": ModelNotFound,
    "RESOURCE_EXHAUSTED": RateLimited,
    "UNIMPLEMENTED": Unsupported,
    "CANCELLED": ServerError,
    "ABORTED": ServerError,
    "INTERNAL": ServerError,
    "UNKNOWN": ServerError,
    "UNAVAILABLE": Overloaded,
    "DEADLINE_EXCEEDED": Overloaded,
}


def gemini_error_from_response(status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
    """The error that a response with a status other than 200 means."""
    error = error_from_response(status, headers, body, address=address)
    if 300 <= status < 400:
        return error
    try:
        parsed: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return error
    # Without `alt=sse` a stream, and so its error too, is an array.
    detail = object_(object_((array(parsed) or [parsed])[0]).get("error"))
    return _as_kind(error, detail) if detail else error


def gemini_error_from_object(detail: Any) -> ModelError:
    """The error that `{"error": ...}` inside a stream, or in the body of a 200, means."""
    error = error_from_object(detail)
    fields = object_(detail)
    return _as_kind(error, fields) if fields else error


def _as_kind(error: ModelError, detail: dict[str, Any]) -> ModelError:
    reasons = [string(object_(each).get("reason")) for each in array(detail.get("details"))]  # google.rpc.ErrorInfo
    kind = _kind(error, detail, "\n".join((server_words(detail), *reasons)))
    if kind is type(error) is ContextOverflow:
        return error  # with its sizes
    hint = ""
    if kind is ModelNotFound:
        hint = "Is the model's name one that `GET /models` lists, and does the address end in /v1beta? `server_said` has more."
    waits = [_seconds(object_(each).get("retryDelay")) for each in array(detail.get("details"))]
    retry_after_s = next((wait for wait in waits if wait is not None), error.retry_after_s)
    return kind(error.message, hint=hint, status=error.status, retry_after_s=retry_after_s, server_said=error.server_said)


def _kind(error: ModelError, detail: dict[str, Any], said: str) -> type[ModelError]:
    status = error.status or 500
    if isinstance(error, ContextOverflow):
        return ContextOverflow
    if status == 400 and _KEY.search(said):
        return AuthenticationFailed
    if status in (400, 404) and _UNSUPPORTED.search(said):
        return Unsupported
    kind = _STATUS.get(string(detail.get("status")), type(error))
    # 402: prepaid credit is used up (documented: ai.google.dev/gemini-api/docs/api-errors).
    if kind is RateLimited and (status == 402 or _is_used_up(detail)):
        return QuotaExceeded
    return kind


def _is_used_up(detail: dict[str, Any]) -> bool:
    """A quota of the day is used up: waiting a minute does not help, whatever `retryDelay` says (reported)."""
    for each in array(detail.get("details")):
        for violation in array(object_(each).get("violations")):
            if "PerDay" in string(object_(violation).get("quotaId")):
                return True
    return False


def _seconds(said: Any) -> float | None:
    """A protobuf Duration in JSON: `3.5s`."""
    if type(said) is not str or not said.endswith("s"):
        return None
    try:
        seconds = float(said[:-1])
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
