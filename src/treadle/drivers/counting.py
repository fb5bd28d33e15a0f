"""Exact token counts, from servers that offer them and from tiktoken (extra `tiktoken`, known by this module only).

A counter is sent what the model would be, so template, tools and images are in its number. The endpoints, and what was seen of each,
are in docs/token-estimate.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias, cast

import msgspec

from treadle.drivers.http import HttpDriver, get_json
from treadle.errors import MissingExtra, UsageError
from treadle.values.messages import AssistantMessage, Opaque, ToolCall, ToolMessage
from treadle.values.request import ModelRequest
from treadle.wire.codec import Codec

__all__ = ["Counter", "count_by_endpoint", "count_by_llamacpp", "count_by_vllm", "counter_for", "tiktoken_counter"]

Counter: TypeAlias = Callable[[HttpDriver, ModelRequest], Awaitable[int | None]]
"""How many tokens the server would read for a request; None if it does not say. For `HttpDriver(counter=)`."""

_ASK_S = 5.0

# The format's own path, where it is counted, and the fields that are allowed there: both providers refuse others.
_ENDPOINTS: dict[str, tuple[str, frozenset[str]]] = {
    "/messages": (
        "/messages/count_tokens",
        frozenset({"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control"}),
    ),
    "/responses": (
        "/responses/input_tokens",
        frozenset(
            {"model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "reasoning", "text", "truncation"}
        ),
    ),
}


def counter_for(codec: Codec, server: str | None) -> Counter | None:
    """The counter for a kind of server (`ModelInfo.server`), or for any server of a format that has one."""
    if codec.path in _ENDPOINTS:
        return count_by_endpoint
    return {"llamacpp": count_by_llamacpp, "vllm": count_by_vllm}.get(server or "") if codec.path == "/chat/completions" else None


async def count_by_endpoint(driver: HttpDriver, request: ModelRequest) -> int | None:
    """By the endpoint that the Messages and the Responses format have for it. Anthropic calls its count an estimate."""
    path, fields = _ENDPOINTS[driver.codec.path]
    body = {name: value for name, value in _body(driver, request).items() if name in fields}
    return _number(await _ask(driver, request, driver.base_url + path, body), "input_tokens")


async def count_by_llamacpp(driver: HttpDriver, request: ModelRequest) -> int | None:
    """By llama.cpp's `/v1/chat/completions/input_tokens`; by `/apply-template` and `/tokenize` where it has none yet.

    The second way does not see images.
    """
    body = _body(driver, request)
    counted = _number(await _ask(driver, request, f"{driver.base_url}/chat/completions/input_tokens", body), "input_tokens")
    if counted is not None:
        return counted
    root = driver.base_url.removesuffix("/v1")
    prompt = _field(await _ask(driver, request, f"{root}/apply-template", body), "prompt")
    if not isinstance(prompt, str):
        return None
    content = {"content": prompt, "add_special": True, "parse_special": True}
    tokens = _field(await _ask(driver, request, f"{root}/tokenize", content), "tokens")
    return len(cast("list[Any]", tokens)) if isinstance(tokens, list) else None


async def count_by_vllm(driver: HttpDriver, request: ModelRequest) -> int | None:
    """By vLLM's `/tokenize`, which reads the body of a chat request."""
    url = f"{driver.base_url.removesuffix('/v1')}/tokenize"
    return _number(await _ask(driver, request, url, _body(driver, request)), "count")


def tiktoken_counter(encoding: str = "o200k_base") -> Counter:
    """A counter on this machine for models of OpenAI's: exact for texts, near for what the provider puts around them.

    tiktoken downloads an encoding's file when it is first used, unless `TIKTOKEN_CACHE_DIR` has it; so call this before the
    event loop runs.

    Raises:
        MissingExtra: `tiktoken` is not installed.
        UsageError: There is no such encoding, or its file cannot be had.
    """
    try:
        tiktoken = importlib.import_module("tiktoken")
    except ImportError as error:
        raise MissingExtra("tiktoken_counter", extra="tiktoken") from error
    try:
        encode: Callable[[str], list[int]] = tiktoken.get_encoding(encoding).encode_ordinary
    except Exception as error:  # what its HTTP client raises is its own
        raise UsageError(
            f"tiktoken has no encoding {encoding!r} ({type(error).__name__})",
            hint="Names are cl100k_base and o200k_base; without a network, put its files where TIKTOKEN_CACHE_DIR says.",
        ) from error

    def count(request: ModelRequest) -> int:
        # Three tokens a message and three that open the answer: OpenAI's cookbook, for gpt-4o (read 2026-11).
        return 3 + 3 * len(request.messages) + sum(len(encode(text)) for text in _texts(request))

    async def counter(driver: HttpDriver, request: ModelRequest) -> int | None:
        return await asyncio.to_thread(count, request)  # tiktoken lets other threads run meanwhile

    return counter


def _texts(request: ModelRequest) -> Iterator[str]:
    yield request.instructions or ""
    for message in request.messages:
        if isinstance(message, AssistantMessage):
            for part in message.content:
                if isinstance(part, ToolCall):
                    yield part.name + part.arguments
                elif not isinstance(part, Opaque):
                    yield part.text
        else:
            yield message.content
            if isinstance(message, ToolMessage):
                yield message.note or ""
    if request.tools:
        yield msgspec.json.encode(request.tools).decode()


def _body(driver: HttpDriver, request: ModelRequest) -> dict[str, Any]:
    return msgspec.json.decode(driver.codec.encoder(driver.served_model).encode(request), type=dict[str, Any])


async def _ask(driver: HttpDriver, request: ModelRequest, url: str, body: dict[str, Any]) -> Any:
    headers = driver.headers(request) | {"Accept": "application/json"}
    with contextlib.suppress(TimeoutError):
        return await get_json(url, timeout_s=_ASK_S, headers=headers, body=body)
    return None


def _field(answer: Any, name: str) -> Any:
    return cast("dict[str, Any]", answer).get(name) if isinstance(answer, dict) else None


def _number(answer: Any, name: str) -> int | None:
    number = _field(answer, name)
    return number if type(number) is int and 0 <= number < 2**40 else None
