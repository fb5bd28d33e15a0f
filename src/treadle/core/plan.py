"""What a run is made with: the parts that `Loop` puts to work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from treadle.core.step import CallModel
from treadle.errors import OutputInvalid
from treadle.policy.context import Context
from treadle.policy.recovery import Recovery
from treadle.values.events import Prompted
from treadle.values.limits import Limits
from treadle.values.ports import Driver, Journal, Toolbox
from treadle.values.request import ModelRequest
from treadle.values.state import State
from treadle.values.toolcalls import Approvals

__all__ = ["Plan"]


class Plan(Struct, frozen=True, kw_only=True):
    """What a run is made with. `drivers` are the agent's own model, then the fallbacks.

    `after_answer` says what follows an answer that has not the wanted form, `value_of` what value a run has come to.
    """

    drivers: tuple[Driver, ...]
    toolbox: Toolbox
    limits: Limits
    request: Callable[[State, CallModel], ModelRequest]
    recovery: Recovery
    context: Context
    approvals: Approvals = ()
    after_answer: Callable[[State], Prompted | OutputInvalid | None] | None = None
    value_of: Callable[[State], Any] = lambda state: None
    journal: Journal | None = None
