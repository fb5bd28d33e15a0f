"""What an error in the Anthropic format means.

The envelope is `{"type": "error", "error": {"type", "message"}}`, in the body of a response or as an event of a stream; llama.cpp
sends OpenAI-style bodies instead (captured), so what is not said by the tables here is left to those of Chat Completions.
Sources of each row: docs/protocols/anthropic.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from treadle.errors import ModelError, QuotaExceeded
from treadle.wire import chat_errors
from treadle.wire.overflow import server_words, words_of_body
from treadle.wire.untyped import object_, string

__all__ = ["error_from_object", "error_from_response"]

_STATUS: dict[str, int] = {
    # Documented, with these statuses.
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
    # vLLM: its own words in the same envelope (captured).
    "BadRequestError": 400,
    "NotFoundError": 404,
    "InternalServerError": 500,
}
"""The status that an error's type stands for, where the error comes inside a stream and has none of its own."""

_QUOTA = re.compile(
    r"credit balance is too low"  # Anthropic, HTTP 400 (reported)
    r"|reached your specified (workspace )?API usage limits",  # Anthropic, HTTP 400: a spend limit the customer set (reported)
    re.IGNORECASE,
)
_QUOTA_CODES = {"enforced_spend_limit_reached", "contract_spend_limit_reached", "linked_organization_spend_limit_reached"}
"""`error.details.error_code` of a 429 that no wait of seconds cures (documented in the SDK's types)."""


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, *, address: str) -> ModelError:
    """The error that a response with a status other than 200 means."""
    error = chat_errors.error_from_response(status, headers, body, address=address)
    if not 400 <= status < 500:
        return error
    try:
        detail: Any = object_(msgspec.json.decode(body)).get("error")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        detail = None
    return _refined(error, detail, words_of_body(body.decode("utf-8", "replace")))


def error_from_object(detail: Any) -> ModelError:
    """The error that an error object inside a stream, or in the body of a 200, means."""
    status = _STATUS.get(string(object_(detail).get("type")))
    error = chat_errors.error_from_object(detail, status=status)
    return _refined(error, detail, server_words(detail))


def _refined(error: ModelError, detail: Any, said: str) -> ModelError:
    """The same error, as the kind that Anthropic's own wording makes it."""
    code = string(object_(object_(detail).get("details")).get("error_code"))
    if code in _QUOTA_CODES or _QUOTA.search(said):
        return QuotaExceeded(error.message, status=error.status, retry_after_s=error.retry_after_s, server_said=error.server_said)
    return error
