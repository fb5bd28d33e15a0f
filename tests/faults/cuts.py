"""A recorded stream of two tool calls, cut after every one of its bytes."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.row import FINE, Row, Seen, Surface, play
from tests.faults.wire_rows import HEAD, recorded
from tests.harness import ByteServer, Close, Reset, Send, run_virtual

# The same constants in every frame say nothing that the first does not; without them a quarter of the bytes tells as much.
_CONSTANT = re.compile(rb',?"(created|id|model|system_fingerprint|object)":("chatcmpl[^"]*"|"(tiny|b0|chat)[^"]*"|\d+)')
TURN = re.sub(rb"\{,", b"{", _CONSTANT.sub(b"", recorded("xllamacpp-trained")))
END = {"closed": Close(), "reset": Reset()}


@dataclass
class Cuts:
    """What came of all cuts, by what was seen.

    Attributes:
        outcomes: How often each: what was seen, requests, tool executions.
        problems: One line for each cut that broke a promise.
    """

    outcomes: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@functools.cache
def cut_everywhere(end: str, surface: Surface) -> Cuts:
    """Every cut of the stream, each with a run of its own. After a cut the server has an answer ready."""
    whole = HEAD + TURN
    reason = whole.index(b'"finish_reason":"tool_calls"')
    proven = whole.index(b"\n", reason)  # the whole line is here: calls may run from this byte on, and from none before

    async def main() -> Cuts:
        cuts = Cuts()
        async with ByteServer(check=False) as server:
            for after in range(len(whole) + 1):
                begun = [Send(whole[:after])] if after else []
                server.script[:] = [[*begun, END[end]], FINE, FINE]
                asked = len(server.posts)
                seen = await play(Row("", (), ran=2 if after >= proven else 0), surface, server.url)
                cuts.outcomes[(outcome(seen), len(server.posts) - asked, seen.ran)] += 1
                cuts.problems += [f"{end} after {after} bytes, {surface}: {problem}" for problem in seen.problems]
        return cuts

    return run_virtual(main(), limit_s=100_000)


def outcome(seen: Seen) -> str:
    """As the table says it: the ending, and the text that was shown."""
    text = seen.text if len(seen.text) <= 40 else f"{seen.text[:20]}… ({len(seen.text):,} characters)"
    words = f" “{text}”" if text else ""
    return f"`{seen.ended}`{words}".replace("|", "\\|").replace("\n", "↵")
