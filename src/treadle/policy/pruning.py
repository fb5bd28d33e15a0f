"""Pruning: old tool results cut to head and tail, in batches, once each, and only when that pays for the cache it breaks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from treadle.values.events import Pruned
from treadle.values.messages import Message, ToolMessage
from treadle.values.text import reference, shortened

__all__ = ["pays", "prunable", "pruned"]

CACHED_PRICE = 0.1
"""What a token read from a cache costs, against one that is not: Anthropic and OpenAI charge a tenth (their price lists, 2026-11); a
local server spends next to nothing on it."""


def prunable(messages: Sequence[Message], *, over_chars: int, since: int = 0) -> tuple[int, ...]:
    """Places of results that are long, from the message `since` on. Errors stay as they are."""
    return tuple(
        index
        for index in range(since, len(messages))
        if isinstance(message := messages[index], ToolMessage) and len(message.content) > over_chars and not message.is_error
    )


def pruned(messages: tuple[Message, ...], fact: Pruned) -> tuple[Message, ...]:
    """The conversation after the fact. The same fact gives the same bytes for ever."""
    cut = list(messages)
    for index in fact.results:
        message = messages[index]
        assert isinstance(message, ToolMessage)
        full = message.content if message.full is None else message.full
        note = f'; read_result(ref="{reference(full)}") has them' if fact.readable else ""
        content = shortened(full, fact.to_chars, note=note)
        cut[index] = replace(message, content=content, full=full)
    return tuple(cut)


def pays(*, reclaimed_tokens: float, rewritten_tokens: float, expected_turns: int, is_cold: bool) -> bool:
    """Is it cheaper to cut now than to carry on?

    Carrying on pays the reclaimed tokens, from the cache, in each turn that is still to come. Cutting pays once for reading again
    what follows the cut. A cold cache is read again in any case.

    Args:
        reclaimed_tokens: What the cut takes out.
        rewritten_tokens: What follows the first place that changes, after the cut.
        expected_turns: Model turns that are still to come.
        is_cold: The server's cache has nothing of this conversation any more.
    """
    if is_cold:
        return reclaimed_tokens > 0
    return reclaimed_tokens * CACHED_PRICE * expected_turns > rewritten_tokens * (1 - CACHED_PRICE)
