"""The file of a cassette: JSON that a person can read and compare, version 1.

    {"treadle_cassette": 1, "model": "ollama/qwen3:8b", "served_model": "qwen3:8b",
     "codec": {"name": "chat", "dialect": {...}},           what differs from the codec's defaults; null for a codec of your own
     "info": {...},                                         what the server said of the model, if it was asked
     "exchanges": [
       {"request": {"method": "POST", "path": "/chat/completions", "headers": {...}, "json": {...}},
        "answer": {"status": 200, "headers": {...}, "reads": ["data: ...", ...], "end": "clean"}}]}

Paths are below the server's base address, which is not kept; of a model's name that holds one, `#qwen3` is. A body that is no JSON is `text`, or `base64` where it is no UTF-8. Each
of `reads` is what one read of the socket brought: text, or `{"base64": ...}` where it is no UTF-8 on its own. `end` says how the
answer ended: `clean`; `broken`, if the connection was; `stalled`, if we gave up waiting; `left`, if we had read enough.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_type_hints

import msgspec
from msgspec import Struct

from treadle.testing.errors import CassetteError
from treadle.values.request import ModelInfo
from treadle.wire.codec import Codec

__all__ = ["Answer", "End", "Exchange", "Sent", "Tape", "codec_from", "described", "read_tape", "write_tape"]

VERSION = 1

End: TypeAlias = Literal["clean", "broken", "stalled", "left"]

_CODECS = {
    "chat": ("treadle.wire.chat", "ChatCodec"),
    "anthropic": ("treadle.wire.anthropic", "AnthropicCodec"),
    "responses": ("treadle.wire.responses", "ResponsesCodec"),
    "gemini": ("treadle.wire.gemini", "GeminiCodec"),
    "ollama": ("treadle.wire.ollama", "OllamaCodec"),
}


class Sent(Struct, frozen=True, kw_only=True):
    """A request, as it was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(Struct, frozen=True, kw_only=True):
    """What came back, read by read."""

    status: int
    headers: dict[str, str]
    reads: list[bytes]
    end: End = "clean"


class Exchange(Struct, frozen=True, kw_only=True):
    request: Sent
    answer: Answer


class Tape(Struct, frozen=True, kw_only=True):
    """What a cassette holds.

    Attributes:
        model: As the test names it.
        served_model: As the server knows it.
        codec: See `described`.
    """

    model: str
    served_model: str
    codec: dict[str, Any] | None
    exchanges: list[Exchange]
    info: ModelInfo | None = None


def write_tape(tape: Tape, path: Path) -> None:
    """Write the file, whole or not at all."""
    value = {
        "treadle_cassette": VERSION,
        "model": tape.model,
        "served_model": tape.served_model,
        "codec": tape.codec,
        "info": None if tape.info is None else json.loads(msgspec.json.encode(tape.info, order="deterministic")),
        "exchanges": [_exchange_to_json(each) for each in tape.exchanges],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_tape(path: Path) -> Tape:
    """The cassette in this file.

    Raises:
        CassetteError: It is none, or one of a newer version.
        FileNotFoundError: There is no such file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value["treadle_cassette"]
        if version != VERSION:
            raise CassetteError(
                f"{path.name} is a cassette of version {version}, and this treadle knows {VERSION}",
                hint="Update treadle, or record it again: pytest --treadle-record=all.",
            )
        info = value.get("info")
        return Tape(
            model=value["model"],
            served_model=value["served_model"],
            codec=value["codec"],
            exchanges=[_exchange_from_json(each) for each in value["exchanges"]],
            info=None if info is None else msgspec.convert(info, ModelInfo),
        )
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise CassetteError(f"{path.name} is no cassette: {type(error).__name__}: {error}") from None


def _exchange_to_json(each: Exchange) -> dict[str, Any]:
    request, answer = each.request, each.answer
    return {
        "request": {"method": request.method, "path": request.path, "headers": request.headers, **_body_to_json(request.body)},
        "answer": {
            "status": answer.status,
            "headers": answer.headers,
            "reads": [_bytes_to_json(read) for read in answer.reads],
            "end": answer.end,
        },
    }


def _exchange_from_json(value: Any) -> Exchange:
    request, answer = value["request"], value["answer"]
    if "json" in request:
        body = json.dumps(request["json"], ensure_ascii=False, separators=(",", ":")).encode()
    else:
        body = _bytes_from_json(request.get("text", request))
    return Exchange(
        request=Sent(method=request["method"], path=request["path"], headers=request["headers"], body=body),
        answer=Answer(
            status=answer["status"],
            headers=answer["headers"],
            reads=[_bytes_from_json(read) for read in answer["reads"]],
            end=msgspec.convert(answer["end"], End),
        ),
    )


def _body_to_json(body: bytes) -> dict[str, Any]:
    try:
        return {"json": json.loads(body)}
    except (ValueError, RecursionError):
        value = _bytes_to_json(body)
        return {"text": value} if isinstance(value, str) else value


def _bytes_to_json(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _bytes_from_json(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    try:
        return base64.b64decode(value["base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from None


def described(codec: Codec) -> dict[str, Any] | None:
    """The codec as data, if it is one of ours: its name, and what its settings have other than the defaults."""
    for name, (_, class_name) in _CODECS.items():
        if type(codec).__name__ != class_name or type(codec).__module__ != _CODECS[name][0]:
            continue
        found: dict[str, Any] = {"name": name}
        held = cast(Mapping[str, Any], vars(codec))
        for setting in inspect.signature(type(codec)).parameters:
            value = held[f"_{setting}"]  # each keeps its settings under their names; a test goes through all of them
            if isinstance(value, Struct):
                usual = type(value)()
                other = {f: getattr(value, f) for f in value.__struct_fields__ if getattr(value, f) != getattr(usual, f)}
                value = msgspec.to_builtins(other) or None
            if value is not None:
                found[setting] = value
        return found
    return None


def codec_from(description: Mapping[str, Any]) -> Codec:
    """The codec that `described` described.

    Raises:
        CassetteError: This version knows none of that name, or none with these settings.
    """
    settings = dict(description)
    name = settings.pop("name", None)
    if name not in _CODECS:
        raise CassetteError(f"the cassette's wire format is {name!r}, which this version does not know", hint="Update treadle.")
    module, class_name = _CODECS[name]
    made: Any = getattr(import_module(module), class_name)
    hints = get_type_hints(made.__init__)
    try:
        return made(**{setting: msgspec.convert(value, hints[setting]) for setting, value in settings.items()})
    except (KeyError, TypeError, msgspec.MsgspecError) as error:
        raise CassetteError(f"the cassette's wire format has settings that this version does not know: {error}") from None
