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
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from treadle.drivers.address import ApiKey, check_url
from treadle.drivers.formats import FORMATS, asked_at, codec_in, split_format
from treadle.drivers.windows import WindowField
from treadle.errors import UsageError
from treadle.values.ports import Driver
from treadle.values.request import SchemaSupport
from treadle.wire import hosted
from treadle.wire.codec import Codec
from treadle.wire.dialects import LLAMACPP, VLLM, Dialect

__all__ = ["PRESETS", "Preset", "addresses", "driver_for", "key_at", "key_of", "preset_at"]


class Preset(Struct, frozen=True, kw_only=True):
    """A kind of server, or a provider, that can be named without its address.

    Attributes:
        name: What stands before the slash: `ollama` in `ollama/qwen3:8b`.
        title: Its name in sentences.
        base_url: Where it listens unless told otherwise, with its path; empty if only `address_env` can say.
        also: Where it may listen instead, asked together with `base_url`.
        address_env: Variables that hold the address: one with a host, `host:port`, `:port` or a URL; or two, host and
            port. If one is set, it is the only address.
        path: What the address in a variable is completed with.
        address_hint: What to put into the variable.
        key_env: Variable that holds the key; it is sent to the addresses of this preset and nowhere else.
        key_header: The header that carries the key, if it is not the format's own.
        dialect: Of Chat Completions; a function if it depends on the model's name.
        start_hint: The command that starts it; `{model}` and `{port}` are filled in. Empty for what you cannot start.
        fetch_hint: The command that fetches another model, or serves it.
        local: Runs on the user's machine: `local` looks for it.
        formats: The wire formats it can be asked in at its address; the first unless the user chooses.
        codecs: Formats whose codec depends on the provider or the model's name, made for that name.
        window: Where it tells the window of a model, if it is hosted and does.
    """

    name: str
    title: str
    base_url: str
    also: tuple[str, ...] = ()
    address_env: tuple[str, ...] = ()
    path: str = "/v1"
    address_hint: str = "Use HOST, HOST:PORT, :PORT or http://HOST:PORT; a key goes into its own variable."
    key_env: str | None = None
    key_header: str | None = None
    dialect: Dialect | Callable[[str], Dialect] = Dialect()
    start_hint: str = ""
    fetch_hint: str = ""
    local: bool = True
    formats: tuple[str, ...] = ("chat", "responses", "anthropic")
    codecs: dict[str, Callable[[str], Codec]] = {}
    window: WindowField | None = None

    def codec_for(self, model: str, format: str) -> Codec:
        """The codec for a model, in one of the formats; one that is not ours is as with any server."""
        if format in self.codecs:
            return self.codecs[format](model)
        return codec_in(format, model, self.dialect if isinstance(self.dialect, Dialect) else self.dialect(model))

    def check(self, format: str | None) -> None:
        """Nothing, if the server can be asked in that format at its address.

        Raises:
            UsageError: It cannot.
        """
        if format is not None and format not in self.formats:
            raise UsageError(
                f"{self.title} is not asked in the format {format!r}",
                hint=f"It is in {', '.join(self.formats)}; at an address of your own: {format}+URL#NAME.",
            )


def _responses(model: str) -> Codec:
    from treadle.wire.responses import ResponsesCodec
    from treadle.wire.responses_requests import ResponsesDialect

    # A model that does not reason answers a request for its reasoning with a 400 (reported of gpt-4o, gpt-5-chat and older).
    encrypted = not re.match(r"gpt-(3|4|5[\d.]*-chat)", model)
    # `temperature` is answered with a 400 while a model reasons, and the oldest that do always reason (docs/protocols/responses.md).
    sampling: Literal["always", "without_reasoning", "never"] = "always"
    if encrypted and re.match(r"o\d|gpt-5", model):
        sampling = "without_reasoning" if re.match(r"gpt-5\.[1-5]", model) else "never"
    return ResponsesCodec(ResponsesDialect(encrypted_reasoning=encrypted, sampling=sampling, schema_support="with_tools"))


def _azure(model: str) -> Codec:
    from treadle.wire.responses import ResponsesCodec
    from treadle.wire.responses_requests import ResponsesDialect

    # The name is the deployment's. Azure answers a request for reasoning with a 400 for most models (reported of all up to
    # gpt-5.2, of DeepSeek's too), so it is asked for where it was reported to be given (docs/protocols/chat.md).
    reasons = re.match(r"gpt-(5\.[4-9]|[6-9])", model) and "chat" not in model
    return ResponsesCodec(ResponsesDialect(encrypted_reasoning=bool(reasons), schema_support="with_tools"))


def _llamacpp_responses(model: str) -> Codec:
    from treadle.wire.responses import ResponsesCodec
    from treadle.wire.responses_requests import LLAMACPP_RESPONSES

    return ResponsesCodec(LLAMACPP_RESPONSES)


def _anthropic(model: str) -> Codec:
    from treadle.wire.anthropic import AnthropicCodec
    from treadle.wire.anthropic_requests import ANTHROPIC_API, AnthropicDialect

    # Up to Claude 4.5 thinking has a budget, later models answer one with a 400 (docs/protocols/anthropic.md).
    older = re.match(r"claude-(?:3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8})?$)", model)
    if not older:
        # Opus 4.7 and later refuse `temperature` and `top_p`.
        return AnthropicCodec(replace(ANTHROPIC_API, sampling=not re.match(r"claude-opus-(?:4-[7-9]|[5-9])", model)))
    schemas: SchemaSupport = "with_tools" if re.match(r"claude-\w+-4-5", model) else "none"
    return AnthropicCodec(AnthropicDialect(thinking="budget", unsigned_thinking=False, schema_support=schemas))


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
            # Its own first: the only one in which a window can be asked for, and a prompt that is too long is refused, not cut.
            formats=("ollama", "chat", "responses", "anthropic"),
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
            codecs={"responses": _llamacpp_responses},
            start_hint="llama-server -m FILE --port {port}",
            fetch_hint="llama-server -m FILE --port {port}",
        ),
        # Addresses, variables, formats and fields: each provider's own API documentation, read 2026-11.
        Preset(
            name="openai",
            title="OpenAI",
            base_url="https://api.openai.com/v1",
            key_env="OPENAI_API_KEY",
            dialect=hosted.OPENAI_CHAT,
            local=False,
            formats=("responses", "chat"),
            codecs={"responses": _responses},
        ),
        Preset(
            name="azure",
            title="Azure OpenAI",
            base_url="",
            address_env=("AZURE_OPENAI_ENDPOINT",),
            path="/openai/v1",
            address_hint="Set it to the address of your resource: https://NAME.openai.azure.com.",
            key_env="AZURE_OPENAI_API_KEY",
            key_header="api-key",
            dialect=hosted.OPENAI_CHAT,
            local=False,
            formats=("responses", "chat"),
            codecs={"responses": _azure},
        ),
        Preset(
            name="anthropic",
            title="Anthropic",
            base_url="https://api.anthropic.com/v1",
            key_env="ANTHROPIC_API_KEY",
            local=False,
            formats=("anthropic", "chat"),
            codecs={"anthropic": _anthropic},
            window=WindowField(path="/models/{model}", name="max_input_tokens"),
        ),
        Preset(
            name="gemini",
            title="Gemini",
            base_url="https://generativelanguage.googleapis.com/v1beta",
            key_env="GEMINI_API_KEY",
            local=False,
            formats=("gemini",),
            window=WindowField(path="/models/{model}", name="inputTokenLimit"),
        ),
        Preset(
            name="openrouter",
            title="OpenRouter",
            base_url="https://openrouter.ai/api/v1",
            key_env="OPENROUTER_API_KEY",
            dialect=hosted.openrouter,
            local=False,
            formats=("chat",),
            window=WindowField(path="/models", name="context_length"),
        ),
        Preset(
            name="deepseek",
            title="DeepSeek",
            base_url="https://api.deepseek.com/v1",
            key_env="DEEPSEEK_API_KEY",
            dialect=hosted.DEEPSEEK,
            local=False,
            formats=("chat",),
        ),
        Preset(
            name="groq",
            title="Groq",
            base_url="https://api.groq.com/openai/v1",
            key_env="GROQ_API_KEY",
            dialect=hosted.groq,
            local=False,
            formats=("chat", "responses"),
            window=WindowField(path="/models", name="context_window"),
        ),
        Preset(
            name="together",
            title="Together",
            base_url="https://api.together.xyz/v1",
            key_env="TOGETHER_API_KEY",
            dialect=hosted.together,
            local=False,
            formats=("chat", "responses"),
            window=WindowField(path="/models", name="context_length"),
        ),
        Preset(
            name="mistral",
            title="Mistral",
            base_url="https://api.mistral.ai/v1",
            key_env="MISTRAL_API_KEY",
            dialect=hosted.mistral,
            local=False,
            formats=("chat",),
            window=WindowField(path="/models/{model}", name="max_context_length"),
        ),
        Preset(
            name="xai",
            title="xAI",
            base_url="https://api.x.ai/v1",
            key_env="XAI_API_KEY",
            dialect=hosted.xai,
            local=False,
            formats=("chat", "responses"),
        ),
    )
}
"""Every server that can be named: those that run here in the order in which `local` prefers them, then the hosted ones."""


def driver_for(model: str, *, api_key: ApiKey = None) -> Driver:
    """The driver that a model's name stands for. No I/O: addresses are asked when a run connects.

    Args:
        model: `provider/name` (the first slash splits), `provider` (the first chat model of that server), `local` (find
            a running server and pick a model), `URL#name`, or a URL (its first chat model). With `FORMAT+` in front the
            server is asked in that wire format: `anthropic+http://host/v1#name`, `chat+ollama/name`.
        api_key: The key to send, instead of the one in the provider's own variable.

    Raises:
        UsageError: The name cannot be understood; the hint has the nearest one that can.
    """
    # Not at the top: discovery asks the addresses that are listed here.
    from treadle.drivers.discovery import DiscoveredDriver, http_driver

    text = model.strip()
    format, rest = split_format(text)
    if rest == "local":
        if format == "gemini":
            raise UsageError(f"{text!r} names no model", hint="In this format a request names one: gemini+URL#MODEL.")
        provider = "ollama" if format == "ollama" else None
        return DiscoveredDriver(text, provider=provider, api_key=api_key, format=format)
    if rest.lower().startswith(("http://", "https://")):
        url, _, name = rest.partition("#")
        if re.search(r"[?&]\w+=", name):
            raise UsageError(
                "a model's name holds no query",
                hint="Pass a key as `api_key=`, or in the provider's variable; the name ends a URL: URL#NAME.",
            )
        url = asked_at(format, _mended(url, path=_PATHS.get(format or "", "/v1")))
        if name:
            return http_driver(url, name, api_key=api_key, format=format)
        known = preset_at(url)
        if format == "gemini" or (known and not known.local):
            raise UsageError(f"{text!r} names no model", hint=f"Write {text}#MODEL.")
        return DiscoveredDriver(text, base_url=url, api_key=api_key, format=format)
    provider, _, name = rest.partition("/")
    preset = PRESETS.get(provider)
    if preset is None:
        raise _unknown(rest, format)
    if not preset.local and not name:
        raise UsageError(f"{text!r} names no model of {preset.title}", hint=f"Write {text.rstrip('/')}/MODEL.")
    preset.check(format)
    urls = addresses(preset)
    if name and len(urls) == 1:
        format = format or preset.formats[0]
        return http_driver(asked_at(format, urls[0]), name, name=text, api_key=api_key, format=format)
    return DiscoveredDriver(text.rstrip("/"), provider=provider, name=name, api_key=api_key, format=format)


_PATHS = {"gemini": "/v1beta", "ollama": ""}
"""Where a format's paths begin if the address has none; by default `/v1`."""


def addresses(preset: Preset) -> tuple[str, ...]:
    """Where the preset's server listens, by the environment of this moment.

    Raises:
        UsageError: The preset's variable holds no address.
    """
    values = [os.environ.get(name, "").strip().strip("\"'").strip() for name in preset.address_env]
    names = " and ".join(preset.address_env)
    if not any(values):
        if not preset.base_url:
            raise UsageError(f"{names} is not set, so nobody knows where {preset.title} is", hint=preset.address_hint)
        return (preset.base_url, *preset.also)
    host, port = (*values, "")[:2]
    try:
        return (_address(host, port, default=preset.base_url) if preset.local else _endpoint(host, preset.path),)
    except (ValueError, UsageError):
        raise UsageError(f"{names} does not hold the address of a server", hint=preset.address_hint) from None


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
    return None if preset is None else key_of(preset)


def key_of(preset: Preset) -> Callable[[], str | None] | None:
    """Reads the key that the environment holds for a preset's server."""
    key_env = preset.key_env
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


def _endpoint(said: str, path: str) -> str:
    """A base URL from the address of a hosted resource, with or without the beginning of its path.

    Raises:
        UsageError: It is no address of a server.
    """
    parts = urlsplit(_mended(said if "://" in said else f"https://{said}", path=path))
    before = parts.path.partition("/" + path.split("/")[1])[0]  # of a gateway
    return f"{parts.scheme}://{parts.netloc}{before}{path}"


def _mended(url: str, *, path: str = "/v1") -> str:
    """The base URL meant by an address that people type or copy; `path` is what one without a path is completed with.

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
    given = parts.path.rstrip("/")
    for copied in ("/chat/completions", "/models", "/messages", "/responses", "/api/chat"):
        given = given.removesuffix(copied).rstrip("/")
    return f"{parts.scheme}://{_in_url(host)}{f':{port}' if port else ''}{given or path}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unknown(text: str, format: str | None) -> UsageError:
    text = re.sub(r"^.*@", "…@", re.sub(r"\?.*", "", text, flags=re.DOTALL), flags=re.DOTALL)  # a key may be in them
    before = f"{format}+" if format else ""
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
    hint = f'Did you mean "{before}{guess[:80]}"? ' if guess and "@" not in guess else ""
    return UsageError(
        f"no provider is named {provider[:80]!r}" if slash else f"{shown} names no server",
        hint=f"{hint}A model is PROVIDER/NAME (with {', '.join(PRESETS)}), http://HOST:PORT/v1#NAME, or local; with FORMAT+ in front"
        f" ({', '.join(FORMATS)}) it is asked in that format.",
    )
