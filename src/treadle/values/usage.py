"""Token counts as servers report them."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Usage"]


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
