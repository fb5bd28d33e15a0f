"""The alarm for prompts that a server cuts in silence: it goes off when something is missing, and never when nothing is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from tests.harness import ByteServer, call_chunk, finish_chunk, reply, run_virtual, sse, text_chunk, usage_chunk
from treadle import (
    Agent,
    ContextPolicy,
    HttpDriver,
    PromptSilentlyTruncated,
    ToolFinished,
    ToolStarted,
    tool,
)
from treadle.core.state import apply
from treadle.policy.context import Context
from treadle.values.events import Prompted, Replied
from treadle.values.events import ToolFinished as Finished
from treadle.values.limits import Limits
from treadle.values.messages import AssistantMessage, Image, Message, Text, Thinking, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ModelInfo, ModelRequest, ToolSpec
from treadle.values.state import State
from treadle.values.tokens import Calibration, estimate_tokens
from treadle.values.usage import Usage
from treadle.wire.chat import ChatCodec

Counting = Literal["with the cached part said", "without it", "only what was not cached"]
KINDS: tuple[Counting, ...] = ("with the cached part said", "without it", "only what was not cached")


@dataclass
class Server:
    """Counts as its tokenizer does, which is off our estimate by a factor of its own and by some of it for each message.

    It keeps the prompts it has read, and finds the longest beginning of a new one among them.
    """

    rng: random.Random
    counting: Counting
    window: int | None = None
    factor: float = 1.0
    off: dict[str, float] = field(default_factory=dict)
    cache: list[list[str]] = field(default_factory=list)

    def tokens(self, text: str) -> int:
        if text not in self.off:
            # A table drawn with one character, or a long blank, is next to nothing for a tokenizer.
            self.off[text] = 0.08 if len(set(text)) < 4 else self.rng.uniform(0.7, 1.4)
        return round(estimate_tokens(text) * self.factor * self.off[text]) + 4

    def read(self, request: ModelRequest) -> Usage:
        last_user = max(i for i, m in enumerate(request.messages) if isinstance(m, UserMessage))
        pieces = [request.instructions or ""] if request.instructions else []
        pieces += [tool.name + tool.description for tool in request.tools]
        for index, message in enumerate(request.messages):
            if isinstance(message, AssistantMessage):
                # As Qwen's template: reasoning goes back only while the user has not spoken again.
                pieces.append(message.text + "".join(c.name + c.arguments for c in message.calls))
                if message.thinking and index > last_user:
                    pieces.append(message.thinking)
            else:
                pieces.append(message.content)
        total = sum(map(self.tokens, pieces))
        while self.window is not None and total > self.window and len(pieces) > 1:
            total -= self.tokens(pieces.pop(0))  # the oldest goes first
        if self.window is not None:
            total = min(total, self.window)
        cached = 0
        for known in self.cache:
            same = 0
            while same < min(len(known), len(pieces)) and known[same] == pieces[same]:
                same += 1
            cached = max(cached, sum(map(self.tokens, pieces[:same])))
        self.cache.append(pieces)
        cached = min(cached, total - 1)
        if self.counting == "with the cached part said":
            return Usage(input_tokens=total, output_tokens=20, cached_input_tokens=cached)
        return Usage(input_tokens=total if self.counting == "without it" else total - cached, output_tokens=20)


class Served:
    def __init__(self) -> None:
        self.calibration = Calibration()
        self.model = "m"

    async def info(self) -> ModelInfo:
        return ModelInfo(model="m", server="x")


def at_once(coroutine: Any) -> Any:
    """What a coroutine returns that waits for nothing."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def some_text(rng: random.Random, words: int) -> str:
    kind = rng.random()
    if kind < 0.1:
        return rng.choice("=-* ") * words * 5
    alphabet = ["the", "file", "x = 1;", "{}", "42", "日本語", "value", "\n", "résumé", "3.14159"]
    return " ".join(rng.choice(alphabet) for _ in range(words))


def run(
    rng: random.Random, server: Server, driver: Any, *, turns: int, first: int, new: int
) -> Iterator[tuple[int, Usage, float]]:
    """One run against the server: each turn's number, what the server says, and how much of the prompt it has lost."""
    context = Context(ContextPolicy(window_tokens=10_000_000), (driver,), Limits(), can_read_results=False)
    prompt: tuple[Message, ...] = (UserMessage(some_text(rng, first)),)
    state = State(run_id="r", model="m", closed=prompt)
    instructions = some_text(rng, 50)
    whole = Server(rng, "without it", factor=server.factor, off=server.off)
    for turn in range(1, turns + 1):
        request = ModelRequest(messages=state.messages, instructions=instructions, turn=turn)
        usage = server.read(request)
        true = whole.read(request).input_tokens or 0
        lost = 0.0 if server.window is None else 1 - min(1.0, server.window / true)
        at_once(context.before(state, request, 0))
        yield turn, usage, lost
        context.after_reply(usage, state, request, 0)
        parts = [Thinking(some_text(rng, 30))] if rng.random() < 0.3 else []
        message = AssistantMessage((*parts, Text(some_text(rng, 10)), ToolCall("c", "look", '{"what": "it"}')))
        state = apply(state, Replied(turn=turn, message=message, finish="tool_use", usage=usage))
        result = ToolMessage("c", "look", some_text(rng, rng.choice([1, new, 4 * new])))
        state = apply(state, Finished(turn=turn, position=0, result=result))


@pytest.mark.parametrize("counting", KINDS)
def test_no_false_alarm_over_a_thousand_honest_histories(counting: Counting) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        driver = Served()
        server = Server(rng, counting, factor=rng.uniform(0.6, 1.6))
        for _ in range(rng.randint(1, 3)):  # the cache is warm from the second run on
            for _ in run(
                rng, server, driver, turns=rng.randint(1, 8), first=rng.choice([5, 300, 3_000]), new=rng.choice([5, 200])
            ):
                pass
        learnt = driver.calibration.counts_only_uncached
        assert not (learnt and counting == "with the cached part said")


@pytest.mark.parametrize("counting", KINDS[:2])
def test_a_gross_loss_is_told_on_the_first_request(counting: Counting) -> None:
    caught = 0
    for seed in range(200):
        rng = random.Random(seed)
        server = Server(rng, counting, factor=rng.uniform(0.85, 1.15))
        text = " ".join(rng.choice(["the", "file", "value", "holds", "nothing"]) for _ in range(6_000))
        server.off[text] = 1.0
        request = ModelRequest(messages=(UserMessage(text),))
        server.window = int((server.read(request).input_tokens or 0) * rng.uniform(0.1, 0.4))
        server.cache.clear()
        policy = ContextPolicy(window_tokens=10_000_000)
        context = Context(policy, (Served(),), Limits(), can_read_results=False)  # type: ignore[arg-type]
        state = State(run_id="r", model="m", closed=request.messages)
        at_once(context.before(state, request, 0))
        with pytest.raises(PromptSilentlyTruncated) as raised:
            context.after_reply(server.read(request), state, request, 0)
        assert raised.value.read_tokens == server.window
        caught += 1
    assert caught == 200


def until_told(seed: int, counting: Counting) -> tuple[int, int]:
    """A run that grows past its server's window: how many replies had lost something before it was told, and how many of them had
    read less than the one before."""
    rng = random.Random(seed)
    server = Server(rng, counting, window=rng.randint(2_000, 5_000), factor=rng.uniform(0.7, 1.4))
    before, lossy, fallen = 0, 0, 0
    try:
        for _, usage, lost in run(rng, server, Served(), turns=60, first=200, new=150):
            read = usage.input_tokens or 0
            lossy, fallen, before = lossy + (lost > 0), fallen + (read < before), read
    except PromptSilentlyTruncated as error:
        assert lossy, f"seed {seed}: nothing was lost: {error}"
        return lossy, fallen
    return 60, fallen


def test_any_loss_of_what_was_counted_is_told_at_once() -> None:
    """Of a server that says how much of a prompt was cached, so that its counts are of whole prompts."""
    told = [until_told(seed, "with the cached part said") for seed in range(300)]
    assert max(fallen for _, fallen in told) == 1, "the first time it reads less than it had counted"
    assert max(lossy for lossy, _ in told) < 10, "and soon when it reads no less, of a prompt that has grown"
    assert sum(lossy == 1 for lossy, _ in told) > 150


def test_without_a_count_of_cached_tokens_it_may_take_some_turns() -> None:
    """Such a count may be one of what was not cached. When what is new is about as much, it is left open."""
    told = [until_told(seed, "without it") for seed in range(300)]
    assert sum(lossy <= 5 for lossy, _ in told) > 250
    assert sum(lossy == 60 for lossy, _ in told) < 10


def test_a_truncating_server_does_not_make_text_cheap() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        driver = Served()
        server = Server(rng, "with the cached part said")
        for _ in run(rng, server, driver, turns=5, first=2_000, new=100):
            pass
        learnt = driver.calibration.prompt_factor
        server.window = 1_500
        told = 0
        for _ in range(20):
            try:
                for _ in run(rng, server, driver, turns=9, first=2_000, new=900):
                    pass
            except PromptSilentlyTruncated:
                told += 1
        assert told >= 15
        assert driver.calibration.prompt_factor >= 0.6 * learnt


class TestInARun:
    """Over the wire: what a user sees."""

    def test_it_is_raised_before_any_call_of_that_reply_runs(self) -> None:
        ran: list[str] = []

        @tool
        async def write(text: str) -> str:
            """Write."""
            ran.append(text)
            return "written"

        async def main() -> None:
            call = call_chunk(0, id="c", name="write", arguments='{"text": "x"}')
            cut = sse(call, finish_chunk("tool_calls"), usage_chunk(2_048, 5))
            async with ByteServer([cut, sse(*reply("never"))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[write])
                events: list[Any] = []
                with pytest.raises(PromptSilentlyTruncated) as caught:
                    async with agent.stream("Some words to read. " * 2_000) as running:
                        async for event in running:
                            events.append(event)
                assert len(server.posts) == 1
                assert not any(isinstance(e, ToolStarted | ToolFinished) for e in events)
                error = caught.value
                assert (error.read_tokens, error.retryable) == (2_048, False)
                assert "num_ctx" in error.hint and "window_tokens" in error.hint
                assert error.result is not None

        run_virtual(main())
        assert ran == []

    def test_another_model_may_have_a_larger_window(self) -> None:
        async def main() -> None:
            cut = sse(text_chunk("I see nothing"), finish_chunk(), usage_chunk(2_048, 5))
            async with ByteServer([cut]) as small, ByteServer([sse(*reply("Fine", usage=(9_000, 5)))]) as large:
                agent = Agent(HttpDriver(ChatCodec(), small.url, "a"), fallback=[HttpDriver(ChatCodec(), large.url, "b")])
                assert (await agent.run("Some words to read. " * 2_000)).text == "Fine"

        run_virtual(main())

    def test_it_says_how_much_was_counted(self) -> None:
        @tool(concurrency="read_only")
        async def look() -> str:
            """Look."""
            return "seen"

        async def main() -> None:
            first = sse(*reply(calls=[("look", {})], usage=(3_000, 5)))
            async with ByteServer([first, sse(*reply("Fine", usage=(2_900, 5)))]) as server:
                agent = Agent(HttpDriver(ChatCodec(), server.url, "m"), tools=[look])
                with pytest.raises(PromptSilentlyTruncated, match=r"read 2,900 tokens of a prompt of at least 3,\d\d\d"):
                    await agent.run("Some words to read. " * 600)

        run_virtual(main())


class TestHonestServers:
    """Single shapes that looked like a loss and are none."""

    def context(self, driver: Any = None) -> Context:
        return Context(ContextPolicy(window_tokens=10_000_000), (driver or Served(),), Limits(), can_read_results=False)

    def play(self, context: Context, state: State, read: int, *, cached: int | None = 0, **request: Any) -> State:
        """A reply to the conversation as it is, of which the server says it has read so much."""
        made = ModelRequest(messages=state.messages, turn=state.turn + 1, **request)
        at_once(context.before(state, made, 0))
        usage = Usage(input_tokens=read, output_tokens=20, cached_input_tokens=cached)
        context.after_reply(usage, state, made, 0)
        message = request.get("reply") or AssistantMessage((Text("So."),))
        return apply(state, Replied(turn=state.turn + 1, message=message, finish="pause", usage=usage))

    def asked(self, words: int = 3_000) -> State:
        return State(run_id="r", model="m", closed=(UserMessage("Some words to read. " * (words // 4)),))

    def test_a_reply_that_says_nothing(self) -> None:
        """It joins no message, so what the server counts next is what it counted before."""
        context, state = self.context(), self.asked()
        made = ModelRequest(messages=state.messages)
        at_once(context.before(state, made, 0))
        usage = Usage(input_tokens=3_100, output_tokens=0, cached_input_tokens=0)
        context.after_reply(usage, state, made, 0)
        state = apply(state, Replied(turn=1, message=AssistantMessage(()), finish="pause", usage=usage))
        self.play(context, state, 3_104)

    @pytest.mark.parametrize("seen", [True, False])
    def test_reasoning_that_goes_when_the_user_speaks(self, seen: bool) -> None:
        """Templates and providers leave it out then, and may never have shown it."""
        context, state = self.context(), self.asked()
        state = self.play(context, state, 3_100)
        thought = AssistantMessage((*([Thinking("hm " * 3_000)] if seen else []), Text("So."), ToolCall("c", "look", "{}")))
        made = ModelRequest(messages=state.messages, turn=2)
        at_once(context.before(state, made, 0))
        usage = Usage(input_tokens=3_120, output_tokens=9_000, cached_input_tokens=3_000, reasoning_tokens=8_900)
        context.after_reply(usage, state, made, 0)
        state = apply(state, Replied(turn=2, message=thought, finish="tool_use", usage=usage))
        state = apply(state, Finished(turn=2, position=0, result=ToolMessage("c", "look", "seen")))
        made = ModelRequest(messages=state.messages, turn=3)
        at_once(context.before(state, made, 0))
        usage = Usage(input_tokens=12_300, output_tokens=9, cached_input_tokens=3_000, reasoning_tokens=0)
        context.after_reply(usage, state, made, 0)
        state = apply(state, Replied(turn=3, message=AssistantMessage((Text("So."),)), finish="end", usage=usage))
        state = apply(state, Prompted(message=UserMessage("Write it as JSON.", origin="run"), why="output"))
        self.play(context, state, 3_200)

    def test_tools_that_are_left_out(self) -> None:
        """The second phase of a structured answer has none."""
        tools = (ToolSpec(name="look", description="look " * 2_000, parameters={"type": "object"}),)
        context, state = self.context(), self.asked()
        state = self.play(context, state, 6_000, tools=tools)
        self.play(context, state, 3_100, tools=())
        with pytest.raises(PromptSilentlyTruncated):
            context, state = self.context(), self.asked()
            state = self.play(context, state, 6_000, tools=tools)
            self.play(context, state, 3_100, tools=tools)

    def test_tools_of_which_a_template_writes_little(self) -> None:
        parameters = {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "x " * 30} for n in range(40)}}
        self.play(
            self.context(), self.asked(1_600), 1_700, tools=(ToolSpec(name="look", description="d", parameters=parameters),)
        )

    def test_pictures(self) -> None:
        """They cost what they cost."""
        message = UserMessage("See. " * 300, tuple(Image(b"x", "image/png") for _ in range(9)))
        self.play(self.context(), State(run_id="r", model="m", closed=(message,)), 700)

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("0123456789" * 4 + "\n", 14),
            ("2026-11-22 03:04:05,678 12 345 6789\n", 20),
            ("A" * 300 + "b/+" * 100 + "\n", 200),
            ("                                   x\n", 4),
            ("----------+----------+----------\n", 6),
            ("日本語の文章です。\n", 5),
        ],
        ids=["digits", "dates", "data", "blanks", "lines", "japanese"],
    )
    def test_text_of_which_some_tokenizers_make_little(self, text: str, read: int) -> None:
        lines = 600
        self.play(self.context(), State(run_id="r", model="m", closed=(UserMessage(text * lines),)), read * lines)

    def test_counts_of_what_was_not_cached_are_not_learnt_from(self) -> None:
        driver = Served()
        context, state = self.context(driver), self.asked()
        state = self.play(context, state, 3_100, cached=None)
        learnt = driver.calibration.prompt_factor
        assert learnt != 1.0
        call = AssistantMessage((Text("I look. "), ToolCall("c", "look", "{}")))
        state = replace(state, closed=(*state.closed[:-1], call, ToolMessage("c", "look", "Some words to read. " * 150)))
        self.play(context, state, 700, cached=None)
        assert driver.calibration.odd_counts == 1
        assert driver.calibration.prompt_factor == learnt
