"""Long results: the model reads 16,000 characters, and can read all of it."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ByteServer, reply, run_virtual, sse
from treadle import Agent, HttpDriver, Limits, messages_from_json, messages_to_json, run_from_json, run_to_json, tool
from treadle.tools.builtin.results import read_result
from treadle.tools.executor import Executor
from treadle.values.messages import Message, ToolCall, ToolMessage
from treadle.values.ports import CallContext
from treadle.values.text import reference
from treadle.wire.chat import ChatCodec

FIVE_MB = "".join(f"{n:07d} {random.Random(n).random()}\n" for n in range(200_000))[:5_000_000]
PAGE = re.compile(r"\[characters ([\d,]+) to ([\d,]+) of ([\d,]+)(?:; go on with offset=(\d+)|, which is its end)\]\n(.*)", re.S)


def read(messages: Sequence[Message], **arguments: object) -> ToolMessage:
    """What the model reads, through the same gates as in a run."""

    async def report(text: str, fraction: float | None) -> None: ...

    async def main() -> ToolMessage:
        import json

        prepared = Executor([read_result], Limits()).prepare(ToolCall("c", "read_result", json.dumps(arguments)))
        if isinstance(prepared, ToolMessage):
            return prepared
        context = CallContext(run_id="r", turn=1, position=0, deadline=math.inf, messages=lambda: tuple(messages), report=report)
        return (await prepared.run(context)).result

    return asyncio.run(main())


def read_all(messages: Sequence[Message], ref: str, **arguments: object) -> str:
    pages: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = read(messages, ref=ref, offset=offset, **arguments)
        assert not page.is_error and page.full is None
        match = PAGE.fullmatch(page.content)
        assert match is not None, page.content[:200]
        pages.append(match[5])
        offset = int(match[4]) if match[4] else None
    return "".join(pages)


def test_five_megabytes_cost_the_model_16_000_characters_and_can_be_read_in_full() -> None:
    @tool(concurrency="read_only")
    def dump() -> str:
        """Return a lot."""
        return FIVE_MB

    async def main() -> tuple[str, Sequence[Message], list[str]]:
        ref = reference(FIVE_MB)
        paging = [("read_result", {"ref": ref, "offset": 4_321_000}), ("read_result", {"ref": ref, "find": "0123456 "})]
        async with ByteServer(
            [sse(*reply(calls=[("dump", {})])), sse(*reply(calls=paging)), sse(*reply("Done"))], check_prefix=True
        ) as server:
            agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[dump, read_result])
            result = await agent.run("Hi")
            sent = [m["content"] for m in server.posts[-1].json["messages"] if m["role"] == "tool"]
            assert all(len(post.body) < 60_000 for post in server.posts)
        assert run_from_json(run_to_json(result)) == result
        return ref, messages_from_json(messages_to_json(result.messages)), sent

    ref, messages, (cut, page, found) = run_virtual(main())
    assert len(cut) <= 16_000
    assert f'left out; read_result(ref="{ref}") has them' in cut
    start, end = (int(text.replace(",", "")) for text in PAGE.fullmatch(page).groups()[:2])  # type: ignore[union-attr]
    assert page.endswith(FIVE_MB[start:end]) and start == 4_321_000
    offset, line = found.splitlines()[1].split(": ", 1)
    assert line.startswith("0123456 ") and FIVE_MB[int(offset) :].startswith(line)
    # Also in a later run that is given this conversation, after it has been JSON.
    assert read_all(messages, ref) == FIVE_MB


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab\n\r é日", min_size=1, max_size=400), st.integers(1, 50))
def test_pages_put_together_are_the_text(text: str, max_chars: int) -> None:
    messages = [ToolMessage("a", "dump", "cut", full=text)]
    assert read_all(messages, reference(text), max_chars=max_chars) == text


class TestMistakes:
    MESSAGES = (ToolMessage("a", "dump", "cut", full="one\ntwo\n" * 10),)
    REF = reference("one\ntwo\n" * 10)

    def test_a_name_that_nothing_has(self) -> None:
        result = read(self.MESSAGES, ref="r00000000")
        assert result.is_error and result.error_kind == "not_found"
        assert "no cut result is named" in result.content

    @pytest.mark.parametrize("offset", [-1, 80, 10**12])
    def test_an_offset_outside(self, offset: int) -> None:
        result = read(self.MESSAGES, ref=self.REF, offset=offset)
        assert result.error_kind == "invalid_input"
        assert "80 characters" in result.content

    @pytest.mark.parametrize("max_chars", [-5, 0, 1])
    def test_a_page_has_at_least_a_character(self, max_chars: int) -> None:
        assert "characters 0 to 1 of 80" in read(self.MESSAGES, ref=self.REF, max_chars=max_chars).content

    def test_text_that_is_not_in_it(self) -> None:
        assert read(self.MESSAGES, ref=self.REF, find="three").content == "No line of the result has 'three'."

    @pytest.mark.parametrize("find", ["\n", "\nline", "e\n", "\n\n"])
    def test_text_with_line_ends_is_found_and_the_search_ends(self, find: str) -> None:
        text = "line\n\nline\n" * 40
        found = read([ToolMessage("a", "dump", "cut", full=text)], ref=reference(text), find=find).content
        assert "lines" in found

    def test_many_matches_are_counted_and_some_shown(self) -> None:
        text = "needle in a line\n" * 1_000
        found = read([ToolMessage("a", "dump", "cut", full=text)], ref=reference(text), find="needle").content
        assert found.splitlines()[0] == "[1,000 lines, the first 50; each with its offset]"
        assert len(found.splitlines()) == 51

    def test_a_match_in_an_endless_line_is_shown_with_what_is_around_it(self) -> None:
        text = "x" * 100_000 + "needle" + "y" * 100_000
        found = read([ToolMessage("a", "dump", "cut", full=text)], ref=reference(text), find="needle").content
        assert "needle" in found and len(found) < 400
