"""What a run is made with: the parts that `Loop` puts to work."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from treadle.core.step import CallModel
from treadle.policy.recovery import Recovery
from treadle.values.limits import Limits
from treadle.values.ports import Driver, Journal, Toolbox
from treadle.values.request import ModelRequest
from treadle.values.state import State
from treadle.values.toolcalls import Approvals

__all__ = ["Plan"]


class Plan(Struct, frozen=True, kw_only=True):
    """What a run is made with. `drivers` are the agent's own model, then the fallbacks."""

    drivers: tuple[Driver, ...]
    toolbox: Toolbox
    limits: Limits
    request: Callable[[State, CallModel], ModelRequest]
    recovery: Recovery
    approvals: Approvals = ()
    journal: Journal | None = None
