"""The raw floor: what a careful person would write by hand with aiohttp and msgspec, with no promises kept.

No deadlines, no errors, no truncation check, no validation, no events: tokens are joined, calls are run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    delta: Delta
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice]
    usage: dict[str, Any] | None = None


decode = msgspec.json.Decoder(Chunk).decode
encode = msgspec.json.Encoder().encode


async def turn(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """One streamed model turn: its text and its calls."""
    text: list[str] = []
    calls: list[dict[str, Any]] = []
    async with session.post(url, data=encode(body), headers={"content-type": "application/json"}) as response:
        buffer = b""
        async for data in response.content.iter_any():
            buffer += data
            *frames, buffer = buffer.split(b"\n\n")
            for frame in frames:
                if frame == b"data: [DONE]":
                    continue
                for choice in decode(frame[6:]).choices:
                    if choice.delta.content:
                        text.append(choice.delta.content)
                    for piece in choice.delta.tool_calls or ():
                        if piece.id:
                            calls.append({"id": piece.id, "name": piece.function.name, "arguments": ""})
                        calls[piece.index]["arguments"] += piece.function.arguments or ""
    return "".join(text), calls


async def loop(
    session: aiohttp.ClientSession, url: str, tools: list[dict[str, Any]], run: Callable[..., Awaitable[str]], prompt: str
) -> str:
    """A tool loop until the model answers with text alone."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    while True:
        body = {"model": "m", "stream": True, "tools": tools, "messages": messages}
        text, calls = await turn(session, url, body)
        if not calls:
            return text
        messages.append(
            {
                "role": "assistant",
                "content": text or None,
                "tool_calls": [
                    {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                    for c in calls
                ],
            }
        )
        results = await asyncio.gather(*(run(**msgspec.json.decode(c["arguments"])) for c in calls))
        messages += [{"role": "tool", "tool_call_id": c["id"], "content": r} for c, r in zip(calls, results, strict=True)]
