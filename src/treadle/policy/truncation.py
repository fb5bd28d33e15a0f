"""The alarm for servers that cut a prompt to their window and say nothing.

After each reply the tokens that the server says it read are held against what it was sent. What it has counted before it has to
count again, exactly; of what is new it has to count half of a low estimate. On a run's first request there is only the estimate, and
only a gross loss can be told.
"""

from __future__ import annotations

import re

from treadle.errors import PromptSilentlyTruncated
from treadle.values.messages import AssistantMessage, Message, ToolMessage, UserMessage
from treadle.values.request import ModelRequest
from treadle.values.state import State
from treadle.values.tokens import Calibration, estimate_tokens
from treadle.values.usage import Usage

__all__ = ["check_was_read", "since_counted"]

_GROSS = 0.5  # of a low estimate: of a first request of which less was read more than half is missing, by any tokenizer
_NEW = 0.5  # of the low estimate of what came since the last request
_HALF = 0.5  # of the estimate of a whole prompt: a count of so much is one of the whole
_MIN_TOKENS = 1_000  # of a first request: an estimate of less text is too rough
_SMALLEST_WINDOW = 512  # no server cuts to less: a smaller count is of something else
_MESSAGE_TOKENS = 5
_SURE = 0.5  # of the calibration: below it has seen some turns
_RUN = re.compile(r"(.)\1{3,}", re.DOTALL)
_DATA = re.compile(r"[A-Za-z0-9+/=_-]{40,}")
_DIGITS = re.compile(r"[0-9]")


def check_was_read(
    usage: Usage,
    request: ModelRequest,
    state: State,
    calibration: Calibration,
    *,
    estimated: float,
    of_tools: float,
    goes_on: bool,
) -> None:
    """Pass if the server can have read the whole prompt. Costs what is new in it, unless something looks wrong.

    Servers that count only what was not in their cache, and do not say how much was, are found out by their counts: a second request
    that was read far less of than the first, and about as much as is new in it. Twice, and their counts are no longer looked at.

    Args:
        state: Before the reply.
        estimated: Tokens of the whole request, not calibrated.
        of_tools: How many of them are the tools'. A chat template may write far less of a tool than its schema.
        goes_on: The last request to this server is a beginning of this one, with the same tools.

    Raises:
        PromptSilentlyTruncated: It cannot.
    """
    read = usage.input_tokens
    if read is None or read < _SMALLEST_WINDOW or calibration.counts_only_uncached:
        return
    before = state.last_usage.input_tokens if state.last_usage is not None and goes_on else None
    new = since_counted(state)
    # Once the user has spoken again, templates and servers leave out reasoning that they had counted, shown to us or not.
    if before is None or any(isinstance(message, UserMessage) for message in new):
        _check_first(read, request, calibration, estimated - of_tools)
        return
    added = sum(map(_high, new))
    counted = max(estimated - added, 1.0)
    # How this server counts: by its count of the last request, and by what it has taught before. What is between is open.
    scales = sorted((calibration.prompt_factor, min(4.0, max(0.25, before / counted))))
    scale = scales[0] if counted >= _MIN_TOKENS / 2 else min(1.0, calibration.prompt_factor)
    if read >= _HALF * scale * estimated:
        calibration.odd_counts = 0
    if read >= before + _NEW * scale * added:
        return
    low = sum(map(_low, new))
    expected = before + _NEW * scale * low
    if read >= expected or expected < _SMALLEST_WINDOW:
        return
    least, most = (0.5, 1.6) if calibration.prompt_error < _SURE else (0.25, 3.0)
    is_about_the_new = least * scale * low - 50 <= read <= most * max(scale, scales[1]) * added + 50
    if usage.cached_input_tokens is None and is_about_the_new:
        # Either it counts only what was not in its cache, or its window is about as large as what is new. No server that fills its
        # window reads less than half of what it read before; so that is the first, and the rest is left open.
        calibration.odd_counts += read < _HALF * before
        calibration.counts_only_uncached = calibration.odd_counts >= 2
        return
    raise _cut(read, before + scale * low, exact=read < before)


def _check_first(read: int, request: ModelRequest, calibration: Calibration, estimated: float) -> None:
    if read >= _GROSS * estimated * calibration.prompt_factor:
        return
    surplus = sum(map(_high, request.messages)) - sum(map(_low, request.messages))
    attached = sum(
        len(m.attachments if isinstance(m, UserMessage) else m.images)
        for m in request.messages
        if isinstance(m, UserMessage | ToolMessage)
    )
    expected = (estimated - surplus) * calibration.prompt_factor
    if expected >= _MIN_TOKENS and read < expected * _GROSS and not attached:  # nobody knows what a picture costs
        raise _cut(read, expected, exact=False)


def _cut(read: int, expected: float, *, exact: bool) -> PromptSilentlyTruncated:
    about = "at least" if exact else "about"
    return PromptSilentlyTruncated(
        f"the server read {read:,} tokens of a prompt of {about} {expected:,.0f}, and did not say that it left out the rest",
        read_tokens=read,
        expected_tokens=round(expected),
    )


def since_counted(state: State) -> tuple[Message, ...]:
    """The last reply, and what came after it: what the server's count of the last request did not have."""
    start = state.counted_messages
    if start and isinstance(state.closed[start - 1], AssistantMessage):  # an empty reply is no message
        start -= 1
    return state.closed[start:]


def _text(message: Message) -> str:
    if isinstance(message, AssistantMessage):
        return message.text + "".join(call.name + call.arguments for call in message.calls)
    return message.content


def _low(message: Message) -> float:
    """A low estimate: of runs of one character, and of long words of data, tokenizers make very little; some take three digits at once."""
    text, digits = _DIGITS.subn("", _DATA.sub("", _RUN.sub(r"\1\1\1", _text(message))))
    return estimate_tokens(text) + digits / 3


def _high(message: Message) -> float:
    thinking = message.thinking if isinstance(message, AssistantMessage) else ""
    return estimate_tokens(_text(message) + thinking) + _MESSAGE_TOKENS
