"""What a request left out, and what of it moved, as facts."""

from __future__ import annotations

from treadle.policy.prompt_tokens import message_tokens, tools_tokens
from treadle.values.events import Omitted, PrefixMoved
from treadle.values.ports import Driver, ReplyStream
from treadle.values.request import ModelRequest
from treadle.values.tokens import estimate_tokens

__all__ = ["told"]


def told(stream: ReplyStream, request: ModelRequest, driver: Driver) -> list[Omitted | PrefixMoved]:
    """What is to be said of a request that was sent. The order is that of the facts."""
    turn, model = request.turn, driver.model
    facts: list[Omitted | PrefixMoved] = [
        Omitted(turn=turn, model=model, what=each.what, why=each.why, count=each.count) for each in stream.omitted
    ]
    if (moved := stream.moved) is not None:
        tokens = (
            sum(map(message_tokens, request.messages)) + estimate_tokens(request.instructions or "") + tools_tokens(request.tools)
        )
        lost = moved.lost_share * tokens * driver.calibration.prompt_factor
        facts.append(PrefixMoved(turn=turn, model=model, component=moved.component, byte=moved.byte, lost_tokens=round(lost)))
    return facts
