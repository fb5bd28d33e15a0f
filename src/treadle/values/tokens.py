"""Token counts without a tokenizer: fast enough to run on every streamed piece, close enough to hold a bound.

Every byte of the UTF-8 text has a weight, chosen with nine real tokenizers; what a server reports corrects the sum for its model.
How far off both are, by kind of text, is measured in docs/token-estimate.md.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable

__all__ = ["Calibration", "estimate_tokens"]

_UNIT = 64  # weights are whole 64ths of a token, so that sums are exact
_TABLE = bytearray(256)
# A later row overrides an earlier one. A character beyond ASCII has the weight of its first byte; the bytes that follow weigh 0.
for _first, _last, _weight in (
    (0x00, 0x7F, 26),  # line ends, tabs, control characters
    (0x20, 0x20, 2),  # a blank mostly belongs to the word after it, and a run of them is one token
    (0x21, 0x7E, 32),  # punctuation
    (0x30, 0x39, 50),  # digits: tokenizers take them one by one, or three at a time
    (0x41, 0x5A, 28),  # capitals
    (0x61, 0x7A, 16),  # small letters
    (0xC2, 0xCB, 80),  # Latin letters with accents break a word in two
    (0xCC, 0xD3, 25),  # Greek, Cyrillic
    (0xD4, 0xDF, 33),  # Armenian, Hebrew, Arabic
    (0xE0, 0xE0, 35),  # Indic scripts, Thai
    (0xE1, 0xE1, 64),  # Vietnamese letters, Georgian, Khmer, and others
    (0xE2, 0xE2, 100),  # dashes, quotation marks, arrows, boxes, older emoji
    (0xE3, 0xE3, 45),  # kana, CJK punctuation
    (0xE4, 0xE9, 50),  # Chinese characters
    (0xEA, 0xED, 55),  # hangul
    (0xEE, 0xEF, 43),  # full-width forms
    (0xF0, 0xF4, 96),  # emoji, rare Chinese characters
):
    _TABLE[_first : _last + 1] = bytes([_weight]) * (_last - _first + 1)
_WEIGHTS = bytes(_TABLE)
_CHUNK = 65_520 // max(_WEIGHTS)  # bytes whose weights cannot come to 65,521
_FEW = 64

_TURNS = 32
_FULL_TURN = 200  # tokens from which a turn's ratio counts fully; a shorter turn's says less
_PRIOR_WEIGHT = 0.3  # of a factor of 1: less than a quarter of what one full turn weighs with it, which is cut off
_PRIOR_ERROR = 0.5
_PRIOR_ERROR_WEIGHT = 0.5  # a tenth of what five full turns weigh with it
_LEAST_BAND = 0.25
_OFTEN = 8  # turns after which a factor is worked out anew only every so many


def estimate_tokens(text: str) -> float:
    """About how many tokens the text has. Pieces of a text come to exactly what the whole does, wherever it is cut."""
    weights = text.encode("utf-8", "surrogatepass").translate(_WEIGHTS)
    if len(weights) <= _FEW:
        return sum(weights) / _UNIT
    # The low half of an Adler-32 is the sum of the bytes plus one, modulo 65,521: ten times as fast as `sum`.
    sums = (zlib.adler32(weights[at : at + _CHUNK]) & 0xFFFF for at in range(0, len(weights), _CHUNK))
    return sum(one - 1 for one in sums) / _UNIT


class Calibration:
    """What a model's server has reported, against what was estimated. Lives on the driver and is shared by its runs.

    A factor is the mean of the middle half of the last 32 turns' ratios, short turns counting less: no single turn decides
    it, and a change of model behind the same name is followed.

    Attributes:
        factor: Multiply an estimate of output by it. Between 0.25 and 4, so that no server can talk a bound away.
        error: Of the estimate times the factor: nine of ten turns were at most this share of it above or below. 0.5 until five
            full turns were seen.
    """

    counts_only_uncached = False
    """The server counts only what was not in its cache, and does not say how much was: its counts of prompts say nothing."""

    odd_counts = 0
    """How often a count looked like that, since one that did not."""

    def __init__(self) -> None:
        self._output = _Ratios()
        self._prompt = _Ratios()
        self._peak = (0.0, 0)
        self._doubted: tuple[float, int] | None = None

    @property
    def factor(self) -> float:
        return self._output.factor

    @property
    def error(self) -> float:
        return self._output.error

    @property
    def prompt_factor(self) -> float:
        """The same for an estimate of a whole prompt. The output's until prompts of some length were learnt from, for the tokenizer
        is one."""
        return self._prompt.factor if self._prompt.weight >= 1 else self._output.factor

    @property
    def prompt_error(self) -> float:
        return self._prompt.error

    def learn(self, estimated: float, reported: int | None) -> None:
        """Take in one turn's output. Turns of a few tokens say little and count little."""
        if reported is not None and reported > 0 and estimated > 0:
            self._output.add(estimated, reported)

    def falls_short(self, estimated: float, reported: int) -> bool:
        """The server read so much less than this prompt was estimated at that no error of the estimate explains it."""
        return reported < estimated * self.prompt_factor * (1 - max(_LEAST_BAND, self.prompt_error))

    def learn_prompt(self, estimated: float, reported: int | None) -> None:
        """Take in how many tokens of a prompt the server says it read, cached ones included.

        A server that cuts prompts to its window must not teach that text is cheap. So a count is doubted that falls short, and
        one of a longer prompt than the one with the highest count, if it is no higher. What was doubted is believed when a
        prompt of at least four times the estimate has the same ratio within a tenth and the highest count so far: a window does
        not grow with what is sent to it, and what is left after a cut is seldom less than a quarter of it.
        """
        if reported is None or reported <= 0 or estimated <= 0:
            return
        longest, most = self._peak
        stands_still = estimated > longest * 1.05 and reported <= most * 1.02
        if stands_still or self.falls_short(estimated, reported):
            before, self._doubted = self._doubted, self._doubted or (estimated, reported)
            if before is None or estimated < 4 * before[0]:
                return
            self._doubted = (estimated, reported)
            if abs(reported / estimated / (before[1] / before[0]) - 1) > 0.1 or reported <= most * 1.02:
                return
            self._prompt, self._peak, self._doubted = _Ratios(), (0.0, 0), None
        if reported > self._peak[1] and estimated >= _FULL_TURN:
            self._peak = (estimated, reported)
        self._prompt.add(estimated, reported)


class _Ratios:
    """Reported over estimated tokens of the last turns, and how they spread."""

    def __init__(self) -> None:
        self.factor = 1.0
        self.error = _PRIOR_ERROR
        self._turns: deque[tuple[float, float]] = deque(maxlen=_TURNS)
        self._added = 0

    @property
    def weight(self) -> float:
        return sum(weight for _, weight in self._turns)

    def add(self, estimated: float, reported: int) -> None:
        ratio = reported / max(estimated, reported / 16)  # one beyond 16 is no tokenizer's
        self._turns.append((ratio, min(1.0, estimated / _FULL_TURN)))
        self._added += 1
        if self._added > _OFTEN and self._added % _OFTEN:
            return  # it changes little by then, and sorting takes as long as reading some tokens
        self.factor = min(4.0, max(0.25, round(_middle_mean([*self._turns, (1.0, _PRIOR_WEIGHT)]), 6)))
        errors = [(abs(ratio / self.factor - 1), weight) for ratio, weight in self._turns]
        self.error = _quantile([*errors, (_PRIOR_ERROR, _PRIOR_ERROR_WEIGHT)], 0.9)


def _middle_mean(weighted: Iterable[tuple[float, float]]) -> float:
    """The mean without the lowest and the highest quarter of the weight."""
    values = sorted(weighted)
    half = sum(weight for _, weight in values) / 2
    begin, end, at, total = half / 2, half * 1.5, 0.0, 0.0
    for value, weight in values:
        total += value * max(0.0, min(at + weight, end) - max(at, begin))
        at += weight
    return total / half


def _quantile(weighted: Iterable[tuple[float, float]], share: float) -> float:
    """The least value that this share of the weight does not exceed."""
    values = sorted(weighted)
    left = sum(weight for _, weight in values) * share
    for value, weight in values:
        left -= weight
        if left <= 0:
            return value
    return values[-1][0]
