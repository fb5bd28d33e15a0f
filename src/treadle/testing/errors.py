"""What a test is told. All are the test's move, so all but one are `UsageError`s: no retry and no fallback hides them.

UsageError
├── CassetteError      a cassette cannot be read, written or used
│   ├── NotRecorded    there is no cassette, or it has no answer to this request
│   ├── RequestDiffers the request is not the one that was recorded
│   └── NotPlayed      the test ended before everything that was recorded was asked for
└── NetworkBlocked     a test that is to stay offline tried to reach an address
AssertionError
└── BrokenEvents       a run's events break a rule
"""

from __future__ import annotations

from treadle.errors import UsageError

__all__ = ["BrokenEvents", "CassetteError", "NetworkBlocked", "NotPlayed", "NotRecorded", "RequestDiffers"]

AGAIN = "If the change is meant, record it again with the real server: pytest --treadle-record=all, for this test."


class CassetteError(UsageError):
    """A cassette cannot be read, written or used as it is."""

    default_hint = AGAIN


class NotRecorded(CassetteError):
    """There is no such cassette, or it has no answer to this request."""

    default_hint = "Record it with the real server: pytest --treadle-record=once, for this test."


class RequestDiffers(CassetteError):
    """The request is not the recorded one.

    Attributes:
        path: The place of the first difference in the request's JSON, as `messages.0.content`; or what else differs.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class NotPlayed(CassetteError):
    """The test ended before everything that was recorded was asked for."""


class NetworkBlocked(UsageError):
    """A test that is to stay offline tried to reach an address.

    Attributes:
        address: A URL, or host and port.
    """

    def __init__(self, address: str) -> None:
        super().__init__(
            f"the test tried to reach {address}, and it is to stay offline",
            hint='Give the agent the driver that `cassette("NAME", model=...)` returns, or a `ScriptedDriver`; replace what else it reaches.',
        )
        self.address = address


class BrokenEvents(AssertionError):
    """A run's events break a rule.

    Attributes:
        index: Of the event at which it shows; the number of events, if it is their end that is wrong.
        rule: The rule, as a sentence.
    """

    def __init__(self, index: int, rule: str, event: object | None) -> None:
        at = f"event {index} ({type(event).__name__})" if event is not None else f"the end, after {index} events"
        super().__init__(f"{at}: {rule}")
        self.index = index
        self.rule = rule
