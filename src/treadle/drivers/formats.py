"""Wire formats by name: what `anthropic` in `anthropic+http://host/v1#model` stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from treadle.errors import UsageError
from treadle.wire.codec import Codec
from treadle.wire.dialects import Dialect

__all__ = ["FORMATS", "asked_at", "codec_in", "listing_url", "split_format"]

_ALSO = {
    "openai": "chat",
    "completions": "chat",
    "claude": "anthropic",
    "messages": "anthropic",
    "google": "gemini",
    "native": "ollama",
}


def _chat(model: str, dialect: Dialect) -> Codec:
    from treadle.wire.chat import ChatCodec

    return ChatCodec(dialect)


def _responses(model: str, dialect: Dialect) -> Codec:
    from treadle.wire.responses import ResponsesCodec
    from treadle.wire.responses_requests import ResponsesDialect

    # Encrypted reasoning is OpenAI's own, and a server without it may answer the request for it with a 400.
    return ResponsesCodec(ResponsesDialect(encrypted_reasoning=False))


def _anthropic(model: str, dialect: Dialect) -> Codec:
    from treadle.wire.anthropic import AnthropicCodec
    from treadle.wire.anthropic_requests import AnthropicDialect

    return AnthropicCodec(AnthropicDialect(bearer=True))  # vLLM reads a key nowhere else


def _gemini(model: str, dialect: Dialect) -> Codec:
    from treadle.wire.gemini import GeminiCodec

    return GeminiCodec(model)


def _ollama(model: str, dialect: Dialect) -> Codec:
    from treadle.wire.ollama import OllamaCodec

    return OllamaCodec()


FORMATS: dict[str, Callable[[str, Dialect], Codec]] = {
    "chat": _chat,
    "responses": _responses,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
}
"""Each makes its codec for a model's name; the dialect is that of Chat Completions."""


def codec_in(format: str, model: str, dialect: Dialect = Dialect()) -> Codec:
    """The codec of a format, for a server of which nothing more is known."""
    return FORMATS[format](model, dialect)


def split_format(text: str) -> tuple[str | None, str]:
    """The format in front of a model's name, and the name: `anthropic+http://...` is `anthropic` and `http://...`.

    Raises:
        UsageError: There is one in front that nobody knows; the hint has the nearest that is known.
    """
    match = re.match(r"([\w.-]*)\+(.*)", text, re.DOTALL)
    if match is None:
        return None, text
    said, rest = match[1].lower(), match[2]
    if said in FORMATS:
        return said, rest
    near = _ALSO.get(said) or next(iter(difflib.get_close_matches(said, FORMATS, n=1)), None)
    guess = f'Did you mean "{near}+"? ' if near else ""
    # What stands there may be a key that was pasted to the wrong place; a word that is nearly a format is none.
    plain = near or re.fullmatch(r"[a-z]{0,12}", match[1])
    raise UsageError(
        f"no format is named {match[1][:80]!r}" if plain else "what stands in front of the + is no format",
        hint=f"{guess}FORMAT+URL#NAME and FORMAT+PROVIDER/NAME choose how a server is asked, with {', '.join(FORMATS)}.",
    )


def asked_at(format: str | None, base_url: str) -> str:
    """Where the format's paths begin on a server whose other API is at `base_url`."""
    return base_url.removesuffix("/v1") if format == "ollama" else base_url


def listing_url(format: str | None, base_url: str) -> str:
    """Where a server that is asked in this format lists its models: below `/v1`, as all but Ollama and Gemini have it anyway."""
    if format == "ollama":
        return f"{base_url}/v1"
    return re.sub(r"/v1beta$", "/v1", base_url) if format == "gemini" else base_url
