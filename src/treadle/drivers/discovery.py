"""What is really there: which servers run, which model to take, and what to type when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from msgspec import structs

from treadle.drivers.address import ApiKey, is_loopback, usable_key
from treadle.drivers.catalog import PRESETS, Preset, addresses, key_at, key_of, preset_at
from treadle.drivers.counting import counter_for
from treadle.drivers.formats import asked_at, codec_in, listing_url
from treadle.drivers.hosted import hosted_info
from treadle.drivers.http import HttpDriver
from treadle.drivers.servers import OLLAMA_FILE, Found, look_at
from treadle.errors import ConnectFailed, ModelError, ModelNotFound, UsageError
from treadle.values.ports import Connection
from treadle.values.request import ModelInfo, ModelRequest, SchemaSupport
from treadle.values.tokens import Calibration
from treadle.wire.codec import Codec

__all__ = ["DiscoveredDriver", "discover", "explain_for", "http_driver", "label", "pick"]

_MAX_SHOWN = 6
_EXPLAIN_S = 0.8  # the driver gives an explanation one second
_REMOTE_S = 5.0


async def discover(
    names: Iterable[str] | None = None, *, api_key: ApiKey = None, timeout_s: float = 1.0
) -> tuple[list[Found], list[str]]:
    """The servers that run at the presets' addresses, and what was tried, in words.

    All are asked at once. By default every preset that runs on the user's own machine.
    """
    tried: dict[str, str] = {}
    for preset in [PRESETS[n] for n in names] if names is not None else [p for p in PRESETS.values() if p.local]:
        try:
            for url in addresses(preset):
                tried.setdefault(url, f"{preset.title} at {url}")
        except UsageError as error:
            tried[preset.name] = f"{preset.title}: {error.message}"
    urls = [url for url in tried if url not in PRESETS]
    keys = [key_at(url) if api_key is None else api_key for url in urls]
    answers = await asyncio.gather(*(look_at(u, api_key=k, timeout_s=timeout_s) for u, k in zip(urls, keys, strict=True)))
    return [found for found in answers if found is not None], list(tried.values())


def pick(found: Found) -> ModelInfo | None:
    """The model to use if none was named: a loaded one before others, then one with tools, then the first.

    None if there is no chat model; embedding models are not.
    """
    return min((m for m in found.models if not _is_embedding(m)), key=_rank, default=None)


def label(found: Found, model: str) -> str:
    """What to type to get this model: `llamacpp/tiny`, or `URL#tiny` where no preset has the address."""
    preset = preset_at(found.base_url)
    return f"{preset.name}/{model}" if preset and preset.name == found.server else f"{found.base_url}#{model}"


def http_driver(
    base_url: str,
    model: str,
    *,
    name: str | None = None,
    api_key: ApiKey = None,
    server: str | None = None,
    format: str | None = None,
) -> HttpDriver:
    """A driver that knows its server: it explains failures, and can be asked about its model.

    Args:
        base_url: Where the format's paths begin.
        name: By default `URL#model`, with the format if one is given.
        api_key: By default the environment's, if a preset has this address.
        server: The kind of server, if it was asked; by default that of the preset with this address.
        format: One of `FORMATS`; by default Chat Completions.
    """
    listing = listing_url(format, base_url)
    there = preset_at(base_url) or preset_at(listing)
    known = PRESETS.get(server) if server else there
    codec = known.codec_for(model, format or "chat") if known else codec_in(format or "chat", model)
    key = api_key if api_key is not None or there is None else key_of(there)
    name = name or f"{format + '+' if format else ''}{base_url}#{model}"
    if there is not None and not there.local:
        return _hosted_driver(there, codec, base_url, model, name, key)

    async def info() -> ModelInfo:
        found = await look_at(listing, api_key=key, timeout_s=_patience_s(base_url), only=model)
        if found is None:
            error = ConnectFailed(f"{base_url} does not say what it serves")
            error.hint = await explain_for(listing, model=model, api_key=key)(error) or error.hint
            raise error
        takes_window = found.server == "ollama" and format == "ollama"
        for each in found.models:
            if each.model in (model, f"{model}:latest"):
                return structs.replace(each, model=model, window_on_request=takes_window and each.window_source != OLLAMA_FILE)
        if found.server == "llamacpp" and len(found.models) == 1:  # it takes any name (captured)
            return structs.replace(found.models[0], model=model)
        return ModelInfo(model=model, server=found.server, window_on_request=takes_window)

    return HttpDriver(
        codec,
        base_url,
        model,
        name=name,
        api_key=key,
        explain=explain_for(listing, model=model, api_key=key, format=format),
        info=info,
        counter=counter_for(codec, known.name if known else None),
    )


def _hosted_driver(preset: Preset, codec: Codec, base_url: str, model: str, name: str, key: ApiKey) -> HttpDriver:
    async def info() -> ModelInfo:
        own, said = preset.codec_for(model, preset.formats[0]), usable_key(key)
        headers = own.headers(said)
        if preset.key_header is not None:
            headers = own.headers(None) | ({preset.key_header: said} if said else {})
        return await hosted_info(preset.name, base_url, model, field=preset.window, headers=headers)

    counter = counter_for(codec, preset.name)
    return HttpDriver(codec, base_url, model, name=name, api_key=key, key_header=preset.key_header, info=info, counter=counter)


class DiscoveredDriver:
    """A driver that finds its server, or its model, when it is first used.

    It asks once; what it found first is kept for the life of the driver.

    Args:
        model: What was asked for, as the user wrote it.
        provider: Look only at this preset's addresses.
        name: The model, if it is known and only the address is not.
        base_url: Look only at this address.
        format: The wire format to ask it in; by default Chat Completions.
    """

    def __init__(
        self,
        model: str,
        *,
        provider: str | None = None,
        name: str = "",
        base_url: str | None = None,
        api_key: ApiKey = None,
        format: str | None = None,
    ) -> None:
        self.model = model
        self._format = format
        self._provider = provider
        self._name = name
        self._base_url = base_url
        self._api_key = api_key
        self._driver: HttpDriver | None = None
        self._calibration = Calibration()

    def __repr__(self) -> str:
        return f"DiscoveredDriver({self.model!r})"

    @property
    def calibration(self) -> Calibration:
        return self._driver.calibration if self._driver else self._calibration

    @property
    def continuable(self) -> bool:
        return self._driver is not None and self._driver.continuable

    @property
    def schema_support(self) -> SchemaSupport:
        """Of the server that was found; none before."""
        return self._driver.schema_support if self._driver is not None else "none"

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection, None]:
        """As `HttpDriver.connect`, after `resolve`."""
        driver = await self.resolve()
        async with driver.connect() as connection:
            yield connection

    async def info(self) -> ModelInfo:
        """What the server says of the model that was found."""
        return await (await self.resolve()).info()

    async def count(self, request: ModelRequest) -> int | None:
        """As `HttpDriver.count`, of the model that was found."""
        return await (await self.resolve()).count(request)

    async def resolve(self) -> HttpDriver:
        """The driver for what was found; its `model` and `base_url` say what that is.

        Raises:
            ConnectFailed: No model server answers. The message lists where it was looked for.
            ModelNotFound: Servers answer, and none has a chat model.
        """
        if self._driver is not None:
            return self._driver
        if self._base_url is not None:
            listing = listing_url(self._format, self._base_url)
            key = key_at(listing) if self._api_key is None else self._api_key
            answer = await look_at(listing, api_key=key, timeout_s=_patience_s(self._base_url))
            found, tried = [answer] if answer else [], [self._base_url]
        else:
            patience_s = max(map(_patience_s, addresses(PRESETS[self._provider]))) if self._provider else 1.0
            names = [self._provider] if self._provider else None
            found, tried = await discover(names, api_key=self._api_key, timeout_s=patience_s)
        if self._name:
            return self._named(found)
        choices = [(f, m) for f in found if (m := pick(f))]
        if not choices:
            raise self._nothing(found, tried, [] if self.model == "local" else _instead((await discover())[0]))
        server, info = min(choices, key=lambda choice: _rank(choice[1]))
        named = label(server, info.model)
        # As what is typed to get it again is asked: a server by its name in its own format, an address as it is.
        own = PRESETS[server.server].formats[0] if named == f"{server.server}/{info.model}" else None
        name = f"{self._format}+{named}" if self._format else named
        driver = self._at(server.base_url, info.model, name, server.server, self._format or own)
        self._driver = self._driver or driver  # of two runs that asked at once, the first decides
        return self._driver

    def _named(self, found: list[Found]) -> HttpDriver:
        """The model was given: the server that lists it, or is of that kind, or whoever answers there."""
        preset = PRESETS[self._provider or ""]
        best = min(found, key=lambda f: (all(m.model != self._name for m in f.models), f.server != preset.name), default=None)
        url = best.base_url if best else addresses(preset)[0]
        kind = best.server if best else preset.name
        driver = self._at(url, self._name, self.model, kind, self._format)
        if best:
            self._driver = self._driver or driver
        return driver  # if nobody answered, its own error will say so, and next time we look again

    def _at(self, base_url: str, model: str, name: str, server: str, format: str | None) -> HttpDriver:
        url = asked_at(format, base_url)
        return http_driver(url, model, name=name, api_key=self._api_key, server=server, format=format)

    def _nothing(self, found: list[Found], tried: list[str], instead: list[str]) -> ModelError:
        presets = [PRESETS[self._provider]] if self._provider else [p for p in PRESETS.values() if p.local]
        if found:
            where = "; ".join(f"{_title(f.server)} at {f.base_url}" for f in found)
            commands = [_command(p.fetch_hint, f.base_url) for f in found if (p := PRESETS.get(f.server))]
            hint = f"Give it one: {_or(commands)}." if commands else "Load a chat model there, or name one: URL#NAME."
            return ModelNotFound(f"no chat model is served: {where}", hint=" ".join([hint, *instead]))
        if self._base_url:
            hint = "Is it the address of an OpenAI-compatible API (usually ending in /v1), and does it need a key?"
            return ConnectFailed(f"no model server answers at {self._base_url}", hint=" ".join([hint, *instead]))
        starts = _or([_command(p.start_hint, _first_address(p)) for p in presets if p.start_hint])
        hint = f"Start one: {starts}; one still loading needs a moment."
        if self._provider and presets[0].key_env:
            hint += f" If it wants a key, set {presets[0].key_env}."
        last = [] if instead else ["`treadle demo` needs no server."]
        return ConnectFailed(f"no model server answers. Tried {', '.join(tried)}", hint=" ".join([hint, *instead, *last]))


def explain_for(
    base_url: str, *, model: str = "NAME", api_key: ApiKey = None, format: str | None = None
) -> Callable[[ModelError], Awaitable[str]]:
    """What an `HttpDriver` at this address needs as `explain`: says what is there instead, and what to type.

    The sentence is empty if nothing more is known than the error says.

    Args:
        base_url: Where the models are listed.
        format: What the server was asked in, if the user chose it.
    """

    async def explain(error: ModelError) -> str:
        looking = look_at(base_url, api_key=api_key, timeout_s=_EXPLAIN_S)
        here, (found, _) = await asyncio.gather(looking, discover(timeout_s=_EXPLAIN_S))
        if here is not None and here.base_url != base_url:
            return f"{_title(here.server)} answers at {here.base_url}: use that address."
        if here is not None:
            if not isinstance(error, ModelNotFound):
                return ""
            return _without_model(here, model) or _without_format(here, format)
        refused = isinstance(error, ConnectFailed)
        said = ["Nothing listens there." if refused else "What answers there lists no models: is it a model server?"]
        if refused or is_loopback(base_url):
            said += _instead(found)
        if (preset := preset_at(base_url)) and preset.start_hint:
            where = "" if is_loopback(base_url) else " on its machine"
            said.append(f"To start {preset.title}{where}: {_command(preset.start_hint, base_url, model)}.")
        elif len(said) == 1:
            return ""
        return " ".join(said)

    return explain


def _instead(found: list[Found]) -> list[str]:
    return [
        f"Found {_title(f.server)} at {f.base_url} serving {m.model}: use --model {label(f, m.model)}."
        for f in found
        if (m := pick(f))
    ]


def _without_model(here: Found, model: str) -> str:
    names = [each.model for each in here.models]
    if model in names or f"{model}:latest" in names:
        return ""
    shown = ", ".join(names[:_MAX_SHOWN])
    if len(names) > _MAX_SHOWN:
        shown += f" and {len(names) - _MAX_SHOWN} more"
    said = f"{_title(here.server)} answers at that address; {f'its models: {shown}.' if names else 'it has no model.'}"
    if near := difflib.get_close_matches(model, names, n=1):
        said += f" Did you mean {near[0]}?"
    if preset := PRESETS.get(here.server):
        said += f" To get this one: {_command(preset.fetch_hint, here.base_url, model)}."
    return said


def _without_format(here: Found, format: str | None) -> str:
    if format in (None, "chat"):
        return ""
    if format == "ollama":  # what an Ollama is asked in unless one says otherwise
        return f"{_title(here.server)} has that model, and nothing where Ollama's own format is spoken: put `chat+` in front of the name."
    return f"{_title(here.server)} has that model, and nothing where `{format}` is spoken: leave `{format}+` out, or try another."


def _command(template: str, base_url: str, model: str = "NAME") -> str:
    shown = model if re.fullmatch(r"[\w./:@+-]{1,200}", model) else "NAME"  # a command to paste must hold nothing else
    return "`" + template.format(model=shown, port=urlsplit(base_url).port or 80) + "`"


def _first_address(preset: Preset) -> str:
    with contextlib.suppress(UsageError):
        return addresses(preset)[0]
    return preset.base_url


def _or(commands: list[str]) -> str:
    return ", ".join(commands[:-1]) + (" or " if len(commands) > 1 else "") + "".join(commands[-1:])


def _title(server: str) -> str:
    preset: Preset | None = PRESETS.get(server)
    return preset.title if preset else "A model server"


def _patience_s(base_url: str) -> float:
    return 1.0 if is_loopback(base_url) else _REMOTE_S


def _is_embedding(info: ModelInfo) -> bool:
    return "embedding" in info.abilities or (not info.abilities and re.search("embed|rerank", info.model, re.I) is not None)


def _rank(info: ModelInfo) -> tuple[int, bool]:
    return {True: 0, None: 1, False: 2}[info.loaded], "tools" not in info.abilities
