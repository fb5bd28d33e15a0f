"""Whatever a tool returned or raised, as an `Outcome` that a journal can keep and a model can read. Never raises."""

from __future__ import annotations

import json
from typing import Any, cast, get_args

import msgspec
from msgspec.structs import replace

from treadle.errors import ToolError, ToolErrorKind
from treadle.values.limits import Limits
from treadle.values.messages import Image, ToolCall, ToolMessage
from treadle.values.text import plain_text, reference, shortened
from treadle.values.toolcalls import Outcome, ToolResult

__all__ = ["Outcomes"]

_KINDS = frozenset(get_args(ToolErrorKind))


class Outcomes:
    """Makes the outcomes of one call.

    Args:
        can_read_result: The model has a tool to page through long results, so they may name it.
    """

    def __init__(self, call: ToolCall, limits: Limits, *, can_read_result: bool) -> None:
        self._call = call
        self._limits = limits
        self._can_read_result = can_read_result

    def of_value(self, value: object) -> Outcome:
        """What a tool returned: text as it is, nothing as a word, the rest as JSON."""
        made = value if isinstance(value, ToolResult) else ToolResult(content=value)
        try:
            text = _text(made.content)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a SystemExit out of somebody's `model_dump` would end the program
            kind = type(made.content).__name__
            return self.of_failure(f"the tool ran, but its result (a {kind}) cannot be written as JSON: {plain_text(error)}")
        kind = made.error_kind if made.error_kind in _KINDS else "internal" if made.is_error or made.error_kind else None
        message = self._message(text, kind)
        display = None if made.display is None else shortened(plain_text(made.display), self._limits.tool_result_chars)
        images, warning = _images(made.images)
        return Outcome(
            result=replace(message, images=images, display=display), details=self._details(made.details), warning=warning
        )

    def of_error(self, error: BaseException) -> Outcome:
        """What a tool raised."""
        if isinstance(error, ToolError):
            kind = error.kind if error.kind in _KINDS else "internal"
            return replace(self.of_failure(error.message, kind), retry_after_s=_seconds(error.retry_after_s))
        return self.of_failure(f"{type(error).__name__}: {plain_text(error)}", _kind(error))

    def of_failure(self, said: object, kind: ToolErrorKind = "internal") -> Outcome:
        """A failure in our own words."""
        return Outcome(result=self._message(plain_text(said), kind))

    def _details(self, details: object) -> object:
        if details is None:
            return None
        try:
            written = _json(details)
        except Exception as error:
            return f"(details that cannot be written as JSON: {plain_text(error)})"
        if len(written) > self._limits.tool_result_chars:
            return shortened(written, self._limits.tool_result_chars)
        return msgspec.json.decode(written)

    def _message(self, text: str, kind: ToolErrorKind | None) -> ToolMessage:
        kept = text[: self._limits.tool_result_kept_chars]
        is_long = len(text) > self._limits.tool_result_chars
        note = f'; read_result(ref="{reference(kept)}") has them' if is_long and self._can_read_result else ""
        return ToolMessage(
            self._call.id,
            self._call.name,
            shortened(text, self._limits.tool_result_chars, note=note),
            is_error=kind is not None,
            full=kept if is_long else None,
            error_kind=kind,
        )


def _text(value: object) -> str:
    if isinstance(value, str):
        return plain_text(value)
    return "(done, no output)" if value is None else _json(value)


def _json(value: object) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=_encode_other).decode()
    except UnicodeEncodeError:  # half a surrogate pair, somewhere inside
        built = msgspec.to_builtins(value, enc_hook=_encode_other, str_keys=True)
        return json.dumps(_plain_inside(built), ensure_ascii=False, separators=(",", ":"))


def _plain_inside(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {plain_text(key): _plain_inside(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain_inside(item) for item in cast("list[Any]", value)]
    return plain_text(value) if isinstance(value, str) else value


def _encode_other(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    dump = getattr(value, "model_dump", None)  # a pydantic model
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _images(images: object) -> tuple[tuple[Image, ...], str | None]:
    if isinstance(images, tuple | list):
        listed = cast("list[object]", images)
        if all(isinstance(image, Image) for image in listed):
            return tuple(cast("list[Image]", images)), None
    return (), "the tool's `images` are no `Image`s, so they were left out"


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


def _kind(error: BaseException) -> ToolErrorKind:
    """What kind of failure an exception that no tool made on purpose amounts to."""
    match error:
        case TimeoutError():
            return "timeout"
        case PermissionError():
            return "permission"
        case FileNotFoundError():
            return "not_found"
        case ConnectionError():
            return "network"
        case _:
            return "internal"
