"""What an error inside a Responses stream means: `response.failed` and `error` events.

Responses with another status than 200 mean what they mean in Chat Completions (chat_errors.py).
"""

from __future__ import annotations

from typing import Any

from treadle.errors import ContentRefused, ModelError
from treadle.wire.chat_errors import error_from_object
from treadle.wire.untyped import object_, string

__all__ = ["error_in_stream"]

# The codes of `response.error` in the official SDK's types (openai 3.54.0, read 2026-11).
_REFUSED = {"bio_policy", "misalignment_policy_violation", "image_content_policy_violation"}
_REQUEST = {"invalid_prompt", "data_residency_mismatch", "failed_to_download_image", "unsupported_image_media_type"}


def error_in_stream(detail: Any) -> ModelError:
    """The typed error. A code that blames the request is none that another attempt would help."""
    code = string(object_(detail).get("code"))
    if code in _REFUSED:
        said = error_from_object(detail).server_said
        return ContentRefused("the server broke off its answer, because its rules refuse the request", server_said=said)
    blames_request = code in _REQUEST or code.startswith(("image_", "invalid_", "empty_image"))
    return error_from_object(detail, status=400 if blames_request or code == "context_length_exceeded" else None)
