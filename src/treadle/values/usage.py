"""Token counts as servers report them."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

__all__ = ["CacheBreak", "CacheUse", "Usage"]


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


class Usage(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Tokens, as the server counted them. A count that was not reported is None, never 0.

    Attributes:
        input_tokens: The whole prompt, cached part included.
        output_tokens: Everything generated, reasoning included.
        cached_input_tokens: The part of `input_tokens` read from the server's cache.
        cache_creation_tokens: The part of `input_tokens` written to a cache that is billed for.
        reasoning_tokens: The part of `output_tokens` spent on reasoning.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_creation_tokens: int | None = None
    reasoning_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        """The sum; a count is known only if both sides know it, so a total is never too small."""
        return Usage(
            input_tokens=_sum(self.input_tokens, other.input_tokens),
            output_tokens=_sum(self.output_tokens, other.output_tokens),
            cached_input_tokens=_sum(self.cached_input_tokens, other.cached_input_tokens),
            cache_creation_tokens=_sum(self.cache_creation_tokens, other.cache_creation_tokens),
            reasoning_tokens=_sum(self.reasoning_tokens, other.reasoning_tokens),
        )


class CacheBreak(Struct, frozen=True, kw_only=True, gc=False):
    """Something that moved the beginning of a run's requests: see `PrefixMoved`.

    Attributes:
        count: How often it did.
        lost_tokens: Of all times together, estimated.
    """

    component: str
    count: int = 1
    lost_tokens: int


class CacheUse(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What a run had from its servers' caches, as they counted it.

    Attributes:
        turns: Turns whose server said how much it read from its cache. The counts are of these.
        input_tokens: Their prompts, cached parts included.
        cached_input_tokens: What was read from a cache.
        cache_creation_tokens: What was written to a cache that is billed for; None if no server said.
        breaks: What kept it from being more, in the order it first happened.
    """

    turns: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_creation_tokens: int | None = None
    breaks: tuple[CacheBreak, ...] = ()

    @property
    def hit_rate(self) -> float | None:
        """The part of the prompts that was read from a cache, 0 to 1; None if no server said."""
        return self.cached_input_tokens / self.input_tokens if self.input_tokens else None

    @property
    def lost_tokens(self) -> int:
        """What was read again because of breaks, estimated."""
        return sum(each.lost_tokens for each in self.breaks)

    def after(self, usage: Usage) -> CacheUse:
        """With one more turn."""
        if usage.input_tokens is None or usage.cached_input_tokens is None:
            return self
        created = (self.cache_creation_tokens, usage.cache_creation_tokens)
        return replace(
            self,
            turns=self.turns + 1,
            input_tokens=self.input_tokens + usage.input_tokens,
            cached_input_tokens=self.cached_input_tokens + usage.cached_input_tokens,
            cache_creation_tokens=None if created == (None, None) else sum(each or 0 for each in created),
        )

    def broken(self, component: str, lost_tokens: int) -> CacheUse:
        """With one more break."""
        breaks = {each.component: each for each in self.breaks}
        one = breaks.get(component)
        count, lost = (one.count, one.lost_tokens) if one is not None else (0, 0)
        breaks[component] = CacheBreak(component=component, count=count + 1, lost_tokens=lost + lost_tokens)
        return replace(self, breaks=tuple(breaks.values()))
