"""Keeping a conversation within the model's window: what is planned for, what is cut when, and what may never go.

A request that would pass 80 % of the window is shortened before it is sent. The steps, each only if it makes the request smaller:
old tool results are cut; the oldest turns are replaced by a summary; recent results are cut too. A call and its results go together.
The system text, the user's first and last request and pinned messages stay, and so does the last turn. If what stays does not fit,
the run ends with `ContextFloorExceedsWindow` and the list of what it is made of.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from treadle.errors import ContextFloorExceedsWindow, ContextOverflow, ModelError, TreadleError, UsageError
from treadle.policy.compaction import Compaction, Room, Summary, local_summary, sliding_window
from treadle.policy.prompt_tokens import attached_tokens, message_tokens, tools_tokens
from treadle.policy.pruning import pays, prunable
from treadle.policy.truncation import check_was_read, since_counted
from treadle.values.events import Compacted, ContextPlanned, Fact, Pruned
from treadle.values.limits import Limits
from treadle.values.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    UserMessage,
)
from treadle.values.ports import Driver, TokenCounter
from treadle.values.request import ModelRequest, ToolSpec
from treadle.values.state import State
from treadle.values.text import plain_text, shortened
from treadle.values.tokens import estimate_tokens
from treadle.values.usage import Usage

__all__ = ["Context", "ContextPolicy", "droppable"]

_SMALL_TOKENS = 1_500
"""A request of this size fits every window there is, so no server is asked about its own for it."""

_INFO_S = 5.0
_NEARLY = 0.95  # of the window: beyond it a step is taken however little it brings
_WORTH = 0.15  # of the window: what a summary has to bring that does not come down to the aim, for it moves the prefix
_BATCH = 0.05  # of the window: what pruning has to bring before there is need, or it would move the prefix with each turn
_PRUNE_FROM = 0.25  # of the window: below it old results cost too little to be looked at
_SUMMARY = 0.1  # of the window
_SHORTER = 0.8  # of what it stands for: a longer summary is not worth its place
_MAX_SUMMARY_TOKENS = 2_000
_CHARS_PER_TOKEN = 4


class ContextPolicy(Struct, frozen=True, kw_only=True):
    """When a conversation is shortened, and how.

    Attributes:
        window_tokens: The window to plan for; None: the server is asked, once a run and only when the conversation grows.
        unknown_window_tokens: What is assumed when nobody can say it, with a warning in the event `ContextPlanned`.
        compact_at: The part of the window at which the conversation is shortened.
        compact_to: The part it should come down to.
        keep_turns: Recent model turns that stay as they are, as long as they fit.
        prune: Old tool results are cut `when_it_pays` for the cache it breaks, when the request passes `prune_at` of the window
            (`at_threshold`), or `never` before the request passes `compact_at`.
        prune_at: See `prune`.
        prune_over_chars, prune_to_chars: Results longer than the one are cut to the other.
        compaction: Writes what stands for the messages that are left out: `local_summary`, `sliding_window`, a `ModelSummary`, or
            your own `Compaction`.
    """

    window_tokens: int | None = None
    unknown_window_tokens: int = 32_768
    compact_at: float = 0.8
    compact_to: float = 0.5
    keep_turns: int = 5
    prune: Literal["when_it_pays", "at_threshold", "never"] = "when_it_pays"
    prune_at: float = 0.6
    prune_over_chars: int = 2_000
    prune_to_chars: int = 500
    compaction: Compaction = local_summary

    def __post_init__(self) -> None:
        parts = 0 < self.compact_to < self.compact_at <= 1 and 0 <= self.prune_at <= 1
        windows = self.unknown_window_tokens > 0 and (self.window_tokens is None or self.window_tokens > 0)
        if not (parts and windows and self.keep_turns >= 1 and 100 <= self.prune_to_chars < self.prune_over_chars):
            raise UsageError(
                f"{self!r} cannot work",
                hint="0 < compact_to < compact_at <= 1, windows above 0, keep_turns of at least 1, 100 <= prune_to_chars < prune_over_chars.",
            )


class _Window(Struct, frozen=True):
    tokens: int
    is_known: bool


class Context:
    """Looks after the conversation of one run. What it knows can be found again, so it is no part of the run's state."""

    def __init__(self, policy: ContextPolicy, drivers: Sequence[Driver], limits: Limits, *, can_read_results: bool) -> None:
        self._policy = policy
        self._drivers = drivers
        self._limits = limits
        self._can_read_results = can_read_results
        self._windows: dict[int, _Window] = {}
        self._asked_for: dict[int, int] = {}
        self._factors: dict[int, float] = {}
        self._refused_at = -1  # a revision
        self._refusal: ContextOverflow | None = None
        self._counted = (-1, 0, 0.0)  # revision, how many messages, their tokens
        self._long: tuple[int, int, list[int]] = (-1, 0, [])  # revision, how many messages, which of them are long results
        self._tools: tuple[tuple[ToolSpec, ...], float] = ((), 0.0)
        self._last_tools: tuple[ToolSpec, ...] | None = None  # of the last request that was answered
        self._estimated = 0.0  # tokens of the request under way, not calibrated
        self._guessed = 0.0  # tokens of the total that no server has counted
        self._cannot_count: set[int] = set()
        self._has_reasoned = False  # which may be in the counts of later prompts, and is not in their estimates

    def window_tokens(self, driver: int) -> int | None:
        """What a server that can be told is asked for: the setting, or what was planned with. It stays the same, for Ollama loads a
        model anew when it changes."""
        return self._policy.window_tokens or self._asked_for.get(driver)

    async def before(self, state: State, request: ModelRequest, driver: int) -> list[Fact]:
        """What has to happen before this request can be made; nothing, if it can be.

        Asked again after each of these facts. Each makes the request smaller, or is said once.

        Raises:
            ContextFloorExceedsWindow: It does not fit, and nothing of it may be left out.
        """
        factor = self._factors.get(driver) or self._drivers[driver].calibration.prompt_factor
        total = self._total(state, request, factor)
        is_small = total + (request.options.max_tokens or 0) < _SMALL_TOKENS
        if is_small and driver not in self._windows and self._policy.window_tokens is None:
            return []
        if driver not in self._windows:
            return [await self._plan(self._drivers[driver], driver, turn=request.turn)]
        window = self._windows[driver]
        room = request.options.max_tokens or 0
        trigger = max(min(window.tokens * self._policy.compact_at, window.tokens - room), window.tokens * 0.3)
        target = min(trigger, window.tokens * self._policy.compact_to)
        early = window.tokens * min(_PRUNE_FROM, self._policy.prune_at)
        if not state.overflowed and total + self._guessed * self._drivers[driver].calibration.prompt_error < min(trigger, early):
            return []  # as nearly every time
        is_sure = state.overflowed  # a refusal has told more than a count would
        if not is_sure:
            total, is_sure = await self._sure(total, (trigger, window.tokens), request, driver)
        refused = state.overflowed and self._refused_at == state.revision  # as it is now
        emergency = state.overflowed and self._refused_at >= 0
        sizes = _Sizes(total, window.tokens, target if emergency else trigger, target, emergency=emergency)
        fact = await self._shorter(state, request, driver, sizes, factor)
        if fact is None and refused and self._refusal is not None and (not window.is_known or total <= window.tokens):
            raise self._refusal  # of a size that nobody knows; or it is the answer that has no room
        least = total if is_sure else self._least(request, factor * (1 - self._drivers[driver].calibration.prompt_error))
        if fact is None and (refused or (window.is_known and least > window.tokens)):
            raise self._floor(state, request, window.tokens, factor)
        return [fact] if fact is not None else []

    def after_overflow(self, error: ContextOverflow, state: State, request: ModelRequest, driver: int) -> ContextPlanned | None:
        """The window that a server's refusal shows, to which the request will be shortened; None if that was tried already."""
        if state.overflowed or isinstance(error, ContextFloorExceedsWindow):
            return None
        estimated = self._total(state, request, 1.0, estimated=True)
        factor = self._drivers[driver].calibration.prompt_factor
        known = self._windows[driver].tokens if driver in self._windows else self._policy.unknown_window_tokens
        said = error.window_tokens if error.window_tokens and error.window_tokens > 0 else None
        tokens = said or min(known, round(estimated * factor))
        if error.prompt_tokens and error.prompt_tokens > 0:
            factor = error.prompt_tokens / max(estimated, 1.0)
        elif estimated * factor + (request.options.max_tokens or 0) <= tokens:
            factor = tokens * 1.05 / max(estimated, 1.0)  # it is too long, whatever we think
        self._factors[driver] = factor
        self._windows[driver] = _Window(tokens, is_known=said is not None)
        self._refused_at, self._refusal = state.revision, error
        name = self._drivers[driver].model
        return ContextPlanned(turn=request.turn, model=name, window_tokens=tokens, source="the server's refusal")

    def after_reply(self, usage: Usage, state: State, request: ModelRequest, driver: int) -> None:
        """Learn from what the server says it has read.

        Raises:
            PromptSilentlyTruncated: It cannot have read the whole prompt.
        """
        calibration = self._drivers[driver].calibration
        goes_on, self._last_tools = self._last_tools is request.tools, request.tools
        check_was_read(usage, request, state, calibration, estimated=self._estimated, of_tools=self._tools[1], goes_on=goes_on)
        self._factors.pop(driver, None)
        if not (self._has_reasoned or calibration.counts_only_uncached or calibration.odd_counts):
            calibration.learn_prompt(self._estimated, usage.input_tokens)
        self._has_reasoned = self._has_reasoned or bool(usage.reasoning_tokens)

    async def _plan(self, driver: Driver, index: int, *, turn: int) -> ContextPlanned:
        tokens, source, warning = self._policy.window_tokens, "setting", None
        unknown, could_have = self._policy.unknown_window_tokens, ""
        if tokens is None:
            try:
                async with asyncio.timeout(_INFO_S):
                    info = await driver.info()
                tokens, source = info.window_tokens, info.window_source or "the server"
                at_most = info.max_window_tokens or unknown
                could_have = f" (it could have {at_most:,})" if info.max_window_tokens else ""
                if info.window_on_request and (tokens or 0) < min(unknown, at_most):
                    tokens, source = min(unknown, at_most), "num_ctx, set by treadle"
            except Exception:
                tokens = None  # it is wanted, not needed; a server that cannot be asked will say so itself
            tokens = tokens if tokens and tokens > 0 else None
        self._windows[index] = _Window(tokens or unknown, is_known=tokens is not None)
        if tokens is None:
            tokens, source = unknown, "default"
            warning = (
                f"Nobody says how large the window of {driver.model} is{could_have}, so {tokens:,} tokens are assumed. "
                "Set it: Agent(..., context=ContextPolicy(window_tokens=...)), or --window TOKENS."
            )
        self._asked_for[index] = tokens
        return ContextPlanned(turn=turn, model=driver.model, window_tokens=tokens, source=source, warning=warning)

    def _least(self, request: ModelRequest, factor: float) -> float:
        """What the request has at least. Nobody knows what a picture or a scan costs before the server has counted it."""
        return factor * (self._estimated - sum(map(attached_tokens, request.messages)))

    async def _sure(self, total: float, bounds: tuple[float, ...], request: ModelRequest, driver: int) -> tuple[float, bool]:
        """The total; as the server counts it, where the estimate in it cannot say on which side of a bound it is. And: it did.

        So a question is asked only near a bound, and of servers that answer it.
        """
        asked = self._drivers[driver]
        band = self._guessed * asked.calibration.prompt_error
        if driver in self._cannot_count or not any(abs(total - bound) < band for bound in bounds):
            return total, False
        counted = None
        if isinstance(asked, TokenCounter):
            try:
                async with asyncio.timeout(_INFO_S):
                    counted = await asked.count(request)
            except (ModelError, TimeoutError):
                pass
        if counted is None:
            self._cannot_count.add(driver)
            return total, False
        asked.calibration.learn_prompt(self._estimated, counted)
        return counted, True

    async def _shorter(
        self, state: State, request: ModelRequest, driver: int, sizes: _Sizes, factor: float
    ) -> Pruned | Compacted | None:
        messages, policy = state.closed, self._policy
        if not sizes.is_over and sizes.total < sizes.window * min(_PRUNE_FROM, policy.prune_at):
            return None
        recent = _recent(messages, policy.keep_turns)
        old = tuple(index for index in self._long_results(state) if index < recent)
        if old and (sizes.is_over or self._prune_early(state, request, old, sizes, factor)):
            return self._pruned(state, request, old, sizes, factor)
        if not sizes.is_over:
            return None
        if (fact := await self._compacted(state, request, driver, sizes, factor)) is not None:
            return fact
        long = prunable(messages, over_chars=policy.prune_to_chars + 100)
        if long and (sizes.is_tight or sizes.emergency):
            return self._pruned(state, request, long, sizes, factor)
        return None

    def _long_results(self, state: State) -> list[int]:
        """Places of the results that pruning would cut, each message looked at once."""
        revision, known, found = self._long
        if revision != state.revision:
            known, found = 0, []
        found += prunable(state.closed, since=known, over_chars=self._policy.prune_over_chars)
        self._long = (state.revision, len(state.closed), found)
        return found

    def _prune_early(self, state: State, request: ModelRequest, old: tuple[int, ...], sizes: _Sizes, factor: float) -> bool:
        if self._policy.prune == "at_threshold":
            return sizes.total > sizes.window * self._policy.prune_at
        if self._policy.prune == "never" or sizes.total < sizes.window * _PRUNE_FROM:
            return False
        reclaimed, rewritten = self._cut(state, old, factor)
        if reclaimed < sizes.window * _BATCH:
            return False
        # A run goes on for about as long as it has: the best guess where nothing else is known.
        expected = min(max(state.turn, 1), self._limits.max_turns - state.turn)
        return pays(reclaimed_tokens=reclaimed, rewritten_tokens=rewritten, expected_turns=expected, is_cold=state.is_cold)

    def _cut(self, state: State, results: tuple[int, ...], factor: float) -> tuple[float, float]:
        """Tokens that cutting these results takes out, and those that follow the first of them afterwards."""
        kept = self._policy.prune_to_chars
        reclaimed = 0.0
        for index in results:
            content = state.closed[index].content
            assert isinstance(content, str)
            reclaimed += estimate_tokens(content) - estimate_tokens(shortened(content, kept))
        after = sum(message_tokens(message) for message in state.closed[results[0] :])
        return reclaimed * factor, (after - reclaimed) * factor

    def _pruned(self, state: State, request: ModelRequest, results: tuple[int, ...], sizes: _Sizes, factor: float) -> Pruned:
        reclaimed, rewritten = self._cut(state, results, factor)
        return Pruned(
            turn=request.turn,
            results=results,
            to_chars=self._policy.prune_to_chars,
            readable=self._can_read_results,
            tokens_before=round(sizes.total),
            tokens_after=round(sizes.total - reclaimed),
            rewritten_tokens=round(rewritten),
        )

    async def _compacted(
        self, state: State, request: ModelRequest, driver: int, sizes: _Sizes, factor: float
    ) -> Compacted | None:
        room_tokens = min(_MAX_SUMMARY_TOKENS, sizes.window * _SUMMARY)
        best: tuple[int, ...] = ()
        after = sizes.total
        for keep in range(self._policy.keep_turns, 0, -1):
            dropped = droppable(state.closed, keep)
            taken = sum(message_tokens(state.closed[index]) for index in dropped) * factor
            if dropped and sizes.total - taken + room_tokens < after:
                best, after = dropped, sizes.total - taken + room_tokens
            if after <= sizes.target:
                break
        room = Room(
            driver=self._drivers[driver],
            max_chars=int(room_tokens * _CHARS_PER_TOKEN / factor),
            max_tokens=int(room_tokens),
            window_tokens=sizes.window,
            output_tokens=max(0.0, self._limits.output_tokens_per_run - state.output_tokens),
            reasoning_tokens=max(0.0, self._limits.reasoning_tokens_per_run - state.reasoning_tokens),
            names_window=self.window_tokens(driver),
            timeouts=self._limits.timeouts,
        )
        compaction = self._policy.compaction
        if sizes.is_tight or sizes.emergency:
            if not best:  # there is no room even for a summary
                best, compaction = droppable(state.closed, 1), sliding_window
        elif after > sizes.target and sizes.total - after < sizes.window * _WORTH:
            return None
        if not best:
            return None
        messages = tuple(state.closed[index] for index in best)
        made, problem = await _made(compaction, messages, room)
        taken = sum(message_tokens(message) for message in messages)
        summary, how = None, "sliding_window"
        if made is not None:
            how = made.how
            summary = UserMessage(shortened(plain_text(made.text), room.max_chars), origin="summary")
            if message_tokens(summary) > taken * _SHORTER:
                summary = None  # it would be about as long as what it stands for
        added = message_tokens(summary) if summary is not None else 0.0
        return Compacted(
            turn=request.turn,
            dropped=best,
            summary=summary,
            how=how,
            emergency=sizes.emergency,
            problem=problem,
            tokens_before=round(sizes.total),
            tokens_after=round(sizes.total - (taken - added) * factor),
            usage=made.usage if made is not None else None,
            output_tokens=made.output_tokens if made is not None else 0.0,
            reasoning_tokens=made.reasoning_tokens if made is not None else 0.0,
        )

    def _total(self, state: State, request: ModelRequest, factor: float, *, estimated: bool = False) -> float:
        """Tokens of the request: what the server has counted, unless only an estimate is wanted, and an estimate of the rest."""
        revision, known, tokens = self._counted
        if revision != state.revision or known > len(state.closed):
            known, tokens = 0, 0.0
        tokens += sum(message_tokens(message) for message in state.closed[known:])
        self._counted = (state.revision, len(state.closed), tokens)
        if self._tools[0] is not request.tools:
            self._tools = (request.tools, tools_tokens(request.tools))
        self._estimated = tokens + estimate_tokens(request.instructions or "") + self._tools[1]
        whole = self._guessed = self._estimated * factor
        last = state.last_usage
        if last is None or last.input_tokens is None or estimated:
            return whole
        # The reply as it goes back: reasoning that was generated may not.
        newer = sum(map(message_tokens, since_counted(state))) * factor
        # A server that counts only what was not in its cache gives a number that is far too low.
        counted = last.input_tokens + newer
        if counted <= whole / 2:
            return whole
        self._guessed = newer
        return counted

    def _floor(self, state: State, request: ModelRequest, window: int, factor: float) -> ContextFloorExceedsWindow:
        floor: defaultdict[str, float] = defaultdict(float)
        if request.instructions:
            floor["instructions"] = estimate_tokens(request.instructions)
        if request.tools:
            floor[f"{len(request.tools)} tools"] = tools_tokens(request.tools)
        users = [i for i, m in enumerate(state.closed) if isinstance(m, UserMessage) and m.origin == "user"]
        gone = set(droppable(state.closed, 1))
        for index, message in enumerate(state.closed):
            if index in gone:
                continue
            if isinstance(message, SystemMessage):
                what = "system message"
            elif isinstance(message, UserMessage) and message.pinned:
                what = "pinned messages"
            elif users and index == users[0]:
                what = "the user's first request"
            elif users and index == users[-1]:
                what = "the user's last request"
            else:
                what = "the last turn"
            floor[what] += message_tokens(message)
        listed = {name: round(tokens * factor) for name, tokens in sorted(floor.items(), key=lambda item: -item[1])}
        said = ", ".join(f"{name} {tokens:,}" for name, tokens in listed.items())
        return ContextFloorExceedsWindow(
            f"what has to stay of the conversation, about {sum(listed.values()):,} tokens ({said}), "
            f"does not fit the window of {window:,}",
            floor=listed,
            window_tokens=window,
        )


class _Sizes(Struct, frozen=True):
    total: float
    window: int
    trigger: float
    target: float
    emergency: bool = False

    @property
    def is_over(self) -> bool:
        return self.total > self.trigger

    @property
    def is_tight(self) -> bool:
        return self.total > self.window * _NEARLY


async def _made(compaction: Compaction, messages: tuple[Message, ...], room: Room) -> tuple[Summary | None, str | None]:
    """The summary; and what was wrong with the compaction, if `local_summary` had to stand in for it."""
    try:
        made = await compaction(messages, room)
        if made is None or isinstance(made, Summary):  # pyright: ignore[reportUnnecessaryIsInstance]
            return made, None
        problem = f"it gave a {type(made).__name__}, not a Summary"
    except Exception as error:  # whoever wrote it, it is no reason to end a run
        problem = error.message if isinstance(error, TreadleError) else type(error).__name__
    return await local_summary(messages, room), problem


def droppable(messages: Sequence[Message], keep_turns: int) -> tuple[int, ...]:
    """Places of the messages that may go when so many recent turns stay, in order. Calls are among them with all their results."""
    users = [i for i, m in enumerate(messages) if isinstance(m, UserMessage) and m.origin == "user"]
    stays = {users[0], users[-1]} if users else set[int]()
    begin, end = _recent(messages, keep_turns), len(messages)
    if keep_turns == 1 and begin < end:  # what the user has said since the last turn is no part of it
        end = next((i for i in range(begin + 1, end) if isinstance(messages[i], UserMessage)), end)
    return tuple(
        index
        for index, message in enumerate(messages)
        if not begin <= index < end
        and (index < begin or keep_turns == 1)
        and index not in stays
        and not isinstance(message, SystemMessage)
        and not (isinstance(message, UserMessage) and message.pinned)
    )


def _recent(messages: Sequence[Message], keep_turns: int) -> int:
    """Where the last so many model turns begin."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], AssistantMessage):
            keep_turns -= 1
            if keep_turns == 0:
                return index
    return 0 if any(isinstance(message, AssistantMessage) for message in messages) else len(messages)
