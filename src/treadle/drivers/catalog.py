"""Models by name: which server `ollama/qwen3:8b` means, where it listens and how it is asked.

Addresses and keys come from the variables the servers themselves read, looked up when a driver is made (addresses) or
when a request is sent (keys).
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from msgspec import Struct

from treadle.drivers.address import ApiKey, check_url
from treadle.errors import UsageError
from treadle.values.ports import Driver
from treadle.wire.codec import Codec
from treadle.wire.dialects import LLAMACPP, VLLM, Dialect

__all__ = ["PRESETS", "Preset", "addresses", "driver_for", "key_at", "preset_at"]


class Preset(Struct, frozen=True, kw_only=True):
    """A kind of server, or a provider, that can be named without its address.

    Attributes:
        name: What stands before the slash: `ollama` in `ollama/qwen3:8b`.
        title: Its name in sentences.
        base_url: Where it listens unless told otherwise, with `/v1`.
        also: Where it may listen instead, asked together with `base_url`.
        address_env: Variables that hold the address: one with a host, `host:port`, `:port` or a URL; or two, host and
            port. If one is set, it is the only address.
        key_env: Variable that holds the key; it is sent to the addresses of this preset and nowhere else.
        start_hint: The command that starts it; `{model}` and `{port}` are filled in. Empty for what you cannot start.
        fetch_hint: The command that fetches another model, or serves it.
        local: Runs on the user's machine: `local` looks for it.
        codec: The wire format, made for a model's name; by default Chat Completions in the preset's dialect.
    """

    name: str
    title: str
    base_url: str
    also: tuple[str, ...] = ()
    address_env: tuple[str, ...] = ()
    key_env: str | None = None
    dialect: Dialect = Dialect()
    start_hint: str = ""
    fetch_hint: str = ""
    local: bool = True
    codec: Callable[[str], Codec] | None = None

    def codec_for(self, model: str) -> Codec:
        if self.codec is not None:
            return self.codec(model)
        from treadle.wire.chat import ChatCodec

        return ChatCodec(self.dialect)


def _responses(model: str) -> Codec:
    from treadle.wire.responses import ResponsesCodec
    from treadle.wire.responses_requests import ResponsesDialect

    # A model that does not reason answers a request for its reasoning with a 400 (reported of gpt-4o and older).
    return ResponsesCodec(ResponsesDialect(encrypted_reasoning=not re.match(r"gpt-(3|4)", model)))


def _anthropic(model: str) -> Codec:
    from treadle.wire.anthropic import AnthropicCodec
    from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect

    # Up to Claude 4.5 thinking has a budget, later models answer one with a 400 (docs/protocols/anthropic.md).
    older = re.match(r"claude-(?:3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8})?$)", model)
    return AnthropicCodec(AnthropicDialect(thinking="budget", unsigned_thinking=False) if older else ANTHROPIC_API)


def _gemini(model: str) -> Codec:
    from treadle.wire.gemini import GeminiCodec

    return GeminiCodec(model)


def _hosted(name: str, title: str, base_url: str, key_env: str, codec: Callable[[str], Codec] | None = None) -> Preset:
    return Preset(name=name, title=title, base_url=base_url, key_env=key_env, local=False, codec=codec)


# Sources, all read 2026-11: ollama/ollama envconfig/config.go and docs; lmstudio.ai/docs/developer/core/authentication;
# docs.vllm.ai env_vars (VLLM_HOST_IP and VLLM_PORT are for its own processes, not the API server's address);
# ggml-org/llama.cpp tools/server/README.md (the default port moves from 8080 to 9931, pull request 26508).
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="ollama",
            title="Ollama",
            base_url="http://127.0.0.1:11434/v1",
            address_env=("OLLAMA_HOST",),
            key_env="OLLAMA_API_KEY",
            start_hint="ollama serve",
            fetch_hint="ollama pull {model}",
        ),
        Preset(
            name="lmstudio",
            title="LM Studio",
            base_url="http://127.0.0.1:1234/v1",
            key_env="LM_API_TOKEN",
            start_hint="lms server start --port {port}",
            fetch_hint="lms get {model}",
        ),
        Preset(
            name="vllm",
            title="vLLM",
            base_url="http://127.0.0.1:8000/v1",
            key_env="VLLM_API_KEY",
            dialect=VLLM,
            start_hint="vllm serve {model} --port {port}",
            fetch_hint="vllm serve {model} --port {port}",
        ),
        Preset(
            name="llamacpp",
            title="llama.cpp",
            base_url="http://127.0.0.1:8080/v1",
            also=("http://127.0.0.1:9931/v1",),
            address_env=("LLAMA_ARG_HOST", "LLAMA_ARG_PORT"),
            key_env="LLAMA_API_KEY",
            dialect=LLAMACPP,
            start_hint="llama-server -m FILE --port {port}",
            fetch_hint="llama-server -m FILE --port {port}",
        ),
        # Addresses and variables: each provider's own API documentation, read 2026-11.
        _hosted("openai", "OpenAI", "https://api.openai.com/v1", "OPENAI_API_KEY", _responses),
        _hosted("anthropic", "Anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", _anthropic),
        _hosted("gemini", "Gemini", "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY", _gemini),
        _hosted("openrouter", "OpenRouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        _hosted("deepseek", "DeepSeek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        _hosted("groq", "Groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        _hosted("together", "Together", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        _hosted("mistral", "Mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
        _hosted("xai", "xAI", "https://api.x.ai/v1", "XAI_API_KEY"),
    )
}
"""Every server that can be named: those that run here in the order in which `local` prefers them, then the hosted ones."""


def driver_for(model: str, *, api_key: ApiKey = None) -> Driver:
    """The driver that a model's name stands for. No I/O: addresses are asked when a run connects.

    Args:
        model: `provider/name` (the first slash splits), `provider` (the first chat model of that server), `local` (find
            a running server and pick a model), `URL#name`, or a URL (its first chat model).
        api_key: The key to send, instead of the one in the provider's own variable.

    Raises:
        UsageError: The name cannot be understood; the hint has the nearest one that can.
    """
    # Not at the top: discovery asks the addresses that are listed here.
    from treadle.drivers.discovery import DiscoveredDriver, http_driver

    text = model.strip()
    if text == "local":
        return DiscoveredDriver(text, api_key=api_key)
    if text.lower().startswith(("http://", "https://")):
        url, _, name = text.partition("#")
        url = _mended(url)
        if name:
            return http_driver(url, name, api_key=api_key)
        return DiscoveredDriver(text, base_url=url, api_key=api_key)
    provider, _, name = text.partition("/")
    preset = PRESETS.get(provider)
    if preset is None:
        raise _unknown(text)
    if not preset.local:
        return _hosted_driver(preset, name, text, api_key)
    urls = addresses(preset)
    if name and len(urls) == 1:
        return http_driver(urls[0], name, name=text, api_key=api_key)
    return DiscoveredDriver(text.rstrip("/"), provider=provider, name=name, api_key=api_key)


def _hosted_driver(preset: Preset, name: str, text: str, api_key: ApiKey) -> Driver:
    from treadle.drivers.http import HttpDriver

    if not name:
        raise UsageError(f"{text!r} names no model of {preset.title}", hint=f"Write {preset.name}/MODEL.")
    key = key_at(preset.base_url) if api_key is None else api_key
    return HttpDriver(preset.codec_for(name), preset.base_url, name, name=text, api_key=key)


def addresses(preset: Preset) -> tuple[str, ...]:
    """Where the preset's server listens, by the environment of this moment.

    Raises:
        UsageError: The preset's variable holds no address.
    """
    values = [os.environ.get(name, "").strip().strip("\"'").strip() for name in preset.address_env]
    if not any(values):
        return (preset.base_url, *preset.also)
    host, port = (*values, "")[:2]
    try:
        return (_address(host, port, default=preset.base_url),)
    except (ValueError, UsageError):
        names = " and ".join(preset.address_env)
        raise UsageError(
            f"{names} does not hold the address of a server",
            hint="Use HOST, HOST:PORT, :PORT or http://HOST:PORT; a key goes into its own variable.",
        ) from None


def preset_at(base_url: str) -> Preset | None:
    """The preset that listens at this address, by the environment of this moment."""
    for preset in PRESETS.values():
        try:
            if base_url in addresses(preset):
                return preset
        except UsageError:
            continue
    return None


def key_at(base_url: str) -> Callable[[], str | None] | None:
    """Reads the key that the environment holds for the server at this address. Other addresses have none."""
    preset = preset_at(base_url)
    key_env = preset.key_env if preset else None
    if key_env is None:
        return None
    # llama.cpp's own variable may list several keys.
    return lambda: os.environ.get(key_env, "").partition(",")[0].strip() or None


def _address(host: str, port: str, *, default: str) -> str:
    """A base URL from what people put into variables, by Ollama's rules.

    Raises:
        ValueError, UsageError: It is no address of a server.
    """
    scheme, separator, rest = host.rpartition("://")
    rest = rest.partition(",")[0]  # llama.cpp takes a list
    with contextlib.suppress(ValueError):
        rest = f"[{ipaddress.IPv6Address(rest)}]"
    parts = urlsplit(f"{scheme or 'http'}://{rest}")
    if parts.scheme not in ("http", "https") or (parts.path and not parts.netloc) or "@" in parts.netloc:
        raise ValueError(host)
    number = int(port) if port else parts.port
    if number is None:
        number = {"http": 80, "https": 443}[parts.scheme] if separator else urlsplit(default).port
    path = parts.path.rstrip("/").removesuffix("/v1")
    return _mended(f"{parts.scheme}://{_in_url(parts.hostname or '127.0.0.1')}:{number}{path}/v1")


def _mended(url: str) -> str:
    """The base URL meant by an address that people type or copy.

    Raises:
        UsageError: It is no HTTP address, or holds what does not belong into one; that is not repeated in the message.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        extra = "@" in parts.netloc or parts.query or re.search(r"\s", url)
    except ValueError:
        host, port, extra, parts = "", None, "@" in url or "?" in url, urlsplit("")
    if extra:
        raise UsageError(
            "a server's address holds no user name, password, query or space",
            hint="Pass a key as `api_key=`, or in the provider's variable.",
        )
    check_url(url)
    with contextlib.suppress(ValueError):
        if (ip := ipaddress.ip_address(host)).is_unspecified:  # one listens there, and connects elsewhere
            host = "127.0.0.1" if ip.version == 4 else "::1"
    path = parts.path.rstrip("/")
    for copied in ("/chat/completions", "/models"):
        path = path.removesuffix(copied).rstrip("/")
    return f"{parts.scheme}://{_in_url(host)}{f':{port}' if port else ''}{path or '/v1'}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unknown(text: str) -> UsageError:
    shown = repr(text if len(text) <= 80 else text[:80] + "…")
    if text.lower().endswith(".gguf"):
        return UsageError(
            f"{shown} is a file, and a model is named by its server",
            hint="To serve the file here: `treadle run --model FILE`, or in Python "
            "`with LlamaServer(FILE) as server: Agent(server.driver)`.",
        )
    provider, slash, name = text.partition("/")
    known = ["local", *PRESETS]
    near = difflib.get_close_matches(provider.lower(), known[bool(slash) :], n=1, cutoff=0.6 if slash else 0.85)
    if re.fullmatch(r"[\w.-]+:\d{2,5}(/.*)?", text):
        guess = f"http://{text}"
    elif near:
        guess = near[0] + slash + name
    elif slash:
        guess = ""
    else:
        guess = f"ollama/{text}" if text else "local"
    hint = f'Did you mean "{guess[:80]}"? ' if guess else ""
    return UsageError(
        f"no provider is named {provider[:80]!r}" if slash else f"{shown} names no server",
        hint=f"{hint}A model is PROVIDER/NAME (with {', '.join(PRESETS)}), http://HOST:PORT/v1#NAME, or local.",
    )
