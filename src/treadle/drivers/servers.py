"""What one server says of itself: what it is, what it serves, how much fits.

Everything asked here is outside data from whoever listens on a port: answers of the wrong type are ignored, names that
could not be shown are left out, sizes and times are bounded, and nothing that comes back raises.

The answers of llama.cpp and vLLM were captured; Ollama's and LM Studio's are as their documentation has them
(docs.ollama.com/api, lmstudio.ai/docs/developer/rest; 2026-11). The table with every source is in docs/context-windows.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Any, cast
from urllib.parse import quote, urlsplit

from msgspec import Struct

from treadle.drivers.address import ApiKey, check_url, proxy_for, usable_key
from treadle.drivers.http import get_json
from treadle.errors import UsageError
from treadle.values.request import ModelInfo

__all__ = ["OLLAMA_FILE", "Found", "look_at"]

OLLAMA_FILE = "POST /api/show parameters num_ctx"
"""The source of a window that is set with the model, in its Modelfile."""

_MAX_MODELS = 200
_MAX_ASKED = 24  # models whose details are asked one by one

_Ask = Callable[..., Awaitable[Any]]
_Listed = list[dict[str, Any]]


class Found(Struct, frozen=True, kw_only=True):
    """A server that answers.

    Attributes:
        server: `llamacpp`, `ollama`, `lmstudio`, `vllm` or `openai-compatible`.
        base_url: Where its chat API is; not always where it was looked for.
        models: What it serves, in its own order; models that cannot write text are left out.
    """

    server: str
    base_url: str
    models: tuple[ModelInfo, ...]


async def look_at(base_url: str, *, api_key: ApiKey = None, timeout_s: float = 1.0, only: str | None = None) -> Found | None:
    """The server at an address, or None if no model server answers there in time.

    Asks `/v1/models`, then the server's own endpoints, one of which says more.

    Args:
        base_url: Usually ending in `/v1`.
        timeout_s: For everything together; what was learnt by then is returned.
        only: The one model whose details matter, where each has to be asked for.

    Raises:
        UsageError: `base_url` is no HTTP address; or a test that is to stay offline does not let it be asked.
    """
    base_url = check_url(base_url)
    try:
        usable_key(api_key)
        proxy_for(base_url)
    except UsageError:
        return None  # a key that cannot be sent, a SOCKS proxy: of this address nobody can be asked, of others perhaps
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s

    async def ask(url: str, body: Any = None) -> Any:
        left_s = deadline - clock()
        with contextlib.suppress(TimeoutError, ValueError):  # ValueError: a host that cannot be sent
            return await get_json(url, timeout_s=left_s, body=body, api_key=api_key) if left_s > 0 else None
        return None

    listed = _listed(await ask(f"{base_url}/models"))
    if listed is None:
        parts = urlsplit(base_url)
        usual = f"{parts.scheme}://{parts.netloc}/v1"
        if usual != base_url and (listed := _listed(await ask(f"{usual}/models"))) is not None:
            base_url = usual
    root = base_url.removesuffix("/v1")
    owner = next((kind for e in listed or () if (kind := _OWNERS.get(str(e.get("owned_by"))))), None)
    kinds = [owner] if owner else ["ollama", "lmstudio", "llamacpp"]
    answers = await asyncio.gather(*(_READERS[kind](ask, root, listed, kind == owner, only) for kind in kinds))
    for kind, models in zip(kinds, answers, strict=True):
        if models is not None:
            return Found(server=kind, base_url=base_url, models=tuple(models))
    if listed is None:
        return None
    kind = "openai-compatible"
    return Found(server=kind, base_url=base_url, models=tuple(_plain(entry, kind) for entry in listed))


# A reader answers None where the answers are not its server's; `sure` says that `/v1/models` named its owner.

_Models = list[ModelInfo] | None


async def _ollama(ask: _Ask, root: str, listed: _Listed | None, sure: bool, only: str | None) -> _Models:
    """The window is the one that the model's file sets; else that of the loaded model.

    Otherwise the server decides when it loads it: by OLLAMA_CONTEXT_LENGTH, which it does not tell, else by its memory, 4,096
    tokens with less than 24 GiB of VRAM. What the model was trained for is no promise of that. A request that names no window
    has the model loaded anew if it is in memory with another than these (ollama/ollama#18129), so the file goes first.
    """
    version, running = await asyncio.gather(ask(f"{root}/api/version"), ask(f"{root}/api/ps"))
    if not sure and not isinstance(_at(version, "version"), str):
        return None
    entries = [e for e in _dicts(_at(running, "models")) if _is_name(e.get("model"))]
    loaded: dict[str, int | None] = {e["model"]: _tokens(e.get("context_length")) for e in entries}
    names: list[str] = [entry["id"] for entry in listed or ()]
    asked = [name for name in names if only is None or name in (only, f"{only}:latest")]
    asked = sorted(asked, key=lambda name: name not in loaded)[:_MAX_ASKED]
    shown = await asyncio.gather(*(ask(f"{root}/api/show", {"model": name}) for name in asked))
    shows = dict(zip(asked, shown, strict=True))
    models: list[ModelInfo] = []
    for name in names:
        show = shows.get(name)
        abilities = _words(_at(show, "capabilities"))
        if abilities and not abilities & {"completion", "embedding"}:
            continue
        trained = _tokens(_at(show, "model_info", f"{_at(show, 'model_info', 'general.architecture')}.context_length"))
        window, source = loaded.get(name), "GET /api/ps context_length"
        set_to = re.search(r"^num_ctx\s+(\d{1,9})$", str(_at(show, "parameters")), re.MULTILINE)
        if set_to and int(set_to[1]):
            window, source = _tokens(int(set_to[1])), OLLAMA_FILE
        elif window is None and _at(show, "remote_host"):  # runs in Ollama's cloud, with all it was trained for
            window, source = trained, "POST /api/show model_info.context_length"
        window = min(window, trained or window) if window else None
        in_memory = name in loaded if isinstance(_at(running, "models"), list) else None
        models.append(_info(name, "ollama", window, source, abilities, in_memory, most=trained))
    return models


async def _lmstudio(ask: _Ask, root: str, listed: _Listed | None, sure: bool, only: str | None) -> _Models:
    """Unknown paths are answered with 200 and an error here. A model not loaded has no window yet, as with Ollama."""
    newer, older = await asyncio.gather(ask(f"{root}/api/v1/models"), ask(f"{root}/api/v0/models"))
    entries = _dicts(_at(newer, "models"))
    if entries and all(_is_name(e.get("key")) and isinstance(e.get("loaded_instances"), list) for e in entries):
        return [model for entry in entries for model in _lmstudio_models(entry)]
    answer = _at(older, "data")
    entries = [e for e in _dicts(answer) if _is_name(e.get("id")) and isinstance(e.get("state"), str)]
    if not isinstance(answer, list) or len(entries) < len(_dicts(answer)):
        return [_plain(entry, "lmstudio") for entry in listed or ()] if sure else None
    models: list[ModelInfo] = []
    for entry in entries:
        window, source = _tokens(entry.get("loaded_context_length")), "GET /api/v0/models loaded_context_length"
        words = _words(entry.get("capabilities")) | {str(entry.get("type"))}
        named = {"tool_use": "tools", "vlm": "vision", "embeddings": "embedding"}
        abilities = frozenset(named[word] for word in words if word in named)
        most = _tokens(entry.get("max_context_length"))
        models.append(_info(entry["id"], "lmstudio", window, source, abilities, entry["state"] == "loaded", most=most))
    return models


def _lmstudio_models(entry: dict[str, Any]) -> list[ModelInfo]:
    """A model of LM Studio 0.4 and later, or its loaded instances, which have names and windows of their own."""
    source = "GET /api/v1/models loaded_instances.config.context_length"
    said = _at(entry, "capabilities")
    abilities = {"tools"} if _at(said, "trained_for_tool_use") is True else set[str]()
    if _at(said, "vision") is True:
        abilities.add("vision")
    if entry.get("type") == "embedding":
        abilities.add("embedding")
    most = _tokens(entry.get("max_context_length"))
    loaded = [each for each in _dicts(entry["loaded_instances"]) if _is_name(each.get("id"))]
    if not loaded:
        return [_info(entry["key"], "lmstudio", None, source, abilities, False, most=most)]
    windows = [(each["id"], _tokens(_at(each, "config", "context_length"))) for each in loaded]
    if all(name != entry["key"] for name, _ in windows):  # asked for by its key, one of them answers: nobody says which
        known = [tokens for _, tokens in windows if tokens]
        windows.append((entry["key"], min(known) if len(known) == len(windows) else None))
    return [_info(name, "lmstudio", tokens, source, abilities, True, most=most) for name, tokens in windows]


async def _llamacpp(ask: _Ask, root: str, listed: _Listed | None, sure: bool, only: str | None) -> _Models:
    """`n_ctx` is what one slot, so one conversation, has (measured: 512 of a server started with 1024 for two slots).

    A router lists several models with a status, and must not be made to load one by being asked.
    """
    entries = listed or []
    urls = {"": f"{root}/props"}
    if any("status" in entry for entry in entries):
        ready = [e["id"] for e in entries if _at(e, "status", "value") == "loaded"]
        urls = {name: f"{root}/props?model={quote(name, safe='')}&autoload=false" for name in ready[:_MAX_ASKED]}
    props = dict(zip(urls, await asyncio.gather(*(ask(url) for url in urls.values())), strict=True))
    if not sure and not isinstance(_at(props.get(""), "default_generation_settings"), dict):
        return None
    if listed is None and _is_name(alias := _at(props.get(""), "model_alias")):
        entries = [{"id": alias}]
    models: list[ModelInfo] = []
    for entry in entries:
        name, shape = entry["id"], _at(entry, "architecture")
        if "text" not in (_words(_at(shape, "output_modalities")) or {"text"}):
            continue
        own = props.get(name, props.get(""))
        window, source = _tokens(_at(own, "default_generation_settings", "n_ctx")), "GET /props n_ctx"
        if window is None:
            window, source = _tokens(_at(entry, "meta", "n_ctx")), "GET /v1/models meta.n_ctx"
        abilities = {"tools"} if _at(own, "chat_template_caps", "supports_tool_calls") is True else set[str]()
        if _at(own, "modalities", "vision") is True or "image" in _words(_at(shape, "input_modalities")):
            abilities.add("vision")
        status = _at(entry, "status", "value") or ("sleeping" if _at(own, "is_sleeping") is True else "loaded")
        most = _tokens(_at(entry, "meta", "n_ctx_train"))
        models.append(_info(name, "llamacpp", window, source, abilities, status == "loaded", most=most))
    return models


async def _vllm(ask: _Ask, root: str, listed: _Listed | None, sure: bool, only: str | None) -> _Models:
    """An adapter names its model instead of a window (`parent`; vLLM's `show_available_models`, not captured)."""
    windows = {entry["id"]: entry.get("max_model_len") for entry in listed or ()}
    models: list[ModelInfo] = []
    for entry in listed or ():
        parent = entry.get("parent")
        inherited = {"max_model_len": windows.get(parent)} if isinstance(parent, str) and not entry.get("max_model_len") else {}
        models.append(_plain(entry | inherited, "vllm", loaded=True))
    return models


def _plain(entry: dict[str, Any], server: str, loaded: bool | None = None) -> ModelInfo:
    window = _tokens(entry.get("max_model_len"))
    return _info(entry["id"], server, window, "GET /v1/models max_model_len", frozenset(), loaded)


def _info(
    name: str,
    server: str,
    window: int | None,
    source: str,
    said: AbstractSet[str],
    loaded: bool | None,
    *,
    most: int | None = None,
) -> ModelInfo:
    unsaid = f"nobody: only the {most:,} tokens that the model can have are known" if most else None
    return ModelInfo(
        model=name,
        server=server,
        window_tokens=window,
        window_source=source if window else unsaid,
        max_window_tokens=most,
        abilities=frozenset(said & {"tools", "vision", "thinking", "embedding"}),
        loaded=loaded,
    )


_OWNERS = {"llamacpp": "llamacpp", "vllm": "vllm", "library": "ollama", "organization_owner": "lmstudio"}
_READERS = {"ollama": _ollama, "lmstudio": _lmstudio, "llamacpp": _llamacpp, "vllm": _vllm}


def _listed(answer: Any) -> _Listed | None:
    """The entries of a `/v1/models` answer; Ollama sends null for none."""
    data = _at(answer, "data")
    if not isinstance(data, list) and not (data is None and _at(answer, "object") == "list"):
        return None
    return [entry for entry in _dicts(data) if _is_name(entry.get("id"))]


def _is_name(value: Any) -> bool:
    """It can be shown and typed."""
    return isinstance(value, str) and 0 < len(value) <= 300 and value.isprintable()


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    return value


def _dicts(value: Any) -> _Listed:
    items = cast("list[Any]", value)[:_MAX_MODELS] if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def _words(value: Any) -> frozenset[str]:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return frozenset(item for item in items if isinstance(item, str))


def _tokens(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**40 else None
