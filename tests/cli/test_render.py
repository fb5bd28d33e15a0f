"""Events, drawn: what a person reads of each."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from msgspec import structs
from rich.console import Console

from treadle import (
    Compacted,
    ContextPlanned,
    Ended,
    Event,
    Omitted,
    Pruned,
    Replied,
    Resumed,
    TextDelta,
    ToolFinished,
    ToolMessage,
    ToolStarted,
    Usage,
    UserMessage,
)
from treadle.cli.render import Plain, Terminal
from treadle.values.events import ErrorRecord, ToolProgress, ToolRetried
from treadle.values.messages import AssistantMessage

ERROR = ErrorRecord(kind="ToolError", message="no route", hint="-")
STARTED = ToolStarted(turn=1, position=0, call_id="c", name="look", arguments='{"what": "x"}')
DIFF = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-old\n+new"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def finished(content: str = "ok", **more: object) -> ToolFinished:
    message = ToolMessage("c", "look", content, **{k: v for k, v in more.items() if k in ("is_error", "display")})  # type: ignore[arg-type]
    return ToolFinished(turn=1, position=0, result=message, **{k: v for k, v in more.items() if k not in ("is_error", "display")})  # type: ignore[arg-type]


def drawn(*events: Event, clock: Clock | None = None, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    terminal = Terminal(console, now=clock or Clock())
    for event in events:
        terminal.show(event)
    terminal.close()
    return out.getvalue()


def noted(*events: Event) -> str:
    notes = io.StringIO()
    plain = Plain(io.StringIO(), notes, now=Clock())
    for event in events:
        plain.show(event)
    plain.close()
    return notes.getvalue()


class TestTerminal:
    def test_a_tool_that_was_stopped_leaves_a_mark(self) -> None:
        text = drawn(STARTED, Ended(stop_reason="deadline"))
        assert '■ look(what="x")  stopped after 0.0 s\n\n■ deadline' in text

    def test_a_warning(self) -> None:
        assert "  ! it held up the program\n" in drawn(STARTED, finished(warning="it held up the program"))

    def test_a_retry(self) -> None:
        text = drawn(STARTED, ToolRetried(turn=1, position=0, attempt=1, error=ERROR, wait_s=1.5))
        assert '↻ look(what="x")  no route: trying again in 1.5 s' in text

    def test_what_is_for_the_person_instead_of_what_is_for_the_model(self) -> None:
        text = drawn(STARTED, finished("wrote f", display=DIFF))
        assert "  │ -old\n  │ +new\n" in text and "wrote f" not in text
        long = "\n".join(f"[ ] {n}" for n in range(100))
        assert "… 76 more lines" in drawn(STARTED, finished(display=long))

    def test_an_error_is_shown_as_the_model_reads_it(self) -> None:
        assert "└ no such file" in drawn(STARTED, finished("no such file", display=DIFF, is_error=True))

    def test_a_call_takes_one_line_whatever_its_length(self) -> None:
        started = ToolStarted(turn=1, position=0, call_id="c", name="look", arguments='{"what": "' + "世" * 150 + '"}')
        lines = drawn(started, finished("x" * 500), width=60).splitlines()
        assert len([line for line in lines if line]) == 2
        assert lines[0].endswith("…  0.0 s")

    @pytest.mark.parametrize(
        ("event", "said"),
        [
            (finished("Denied: no", is_error=True, refused="denied"), "✗ look  denied"),
            (finished("unknown", is_error=True), "✗ look  did not run"),
            (finished("blue"), "✓ look  answered"),
        ],
    )
    def test_a_call_that_nothing_was_run_for(self, event: Event, said: str) -> None:
        assert said in drawn(event)

    def test_the_time_that_a_person_takes_is_not_the_runs(self) -> None:
        clock = Clock()
        out = io.StringIO()
        terminal = Terminal(Console(file=out, width=80), now=clock)
        for now, event in [
            (1.0, Replied(turn=1, message=AssistantMessage(()), finish="tool_use", usage=Usage(input_tokens=1, output_tokens=1))),
            (500.0, Resumed()),
            (502.0, Ended(stop_reason="end")),
        ]:
            clock.now = now
            terminal.show(event)
        assert "· 3.0 s" in out.getvalue()

    def test_never_two_empty_lines(self) -> None:
        events: Sequence[Event] = [
            TextDelta(turn=1, text="Hi"),
            STARTED,
            finished(),
            finished("no", is_error=True),
            Ended(stop_reason="end"),
        ]
        assert "\n\n\n" not in drawn(*events)


class TestPlain:
    def test_notes(self) -> None:
        progress = ToolProgress(turn=1, position=0, text="half")
        retried = ToolRetried(turn=1, position=0, attempt=1, error=ERROR, wait_s=0)
        text = noted(STARTED, progress, retried, finished("wrote", display="[x] a\n[ ] b", warning="careful"))
        assert text == ('> look(what="x")\n~ look(what="x"): no route: trying again\n< look: \n    [x] a\n    [ ] b\n! careful\n')

    def test_stopped(self) -> None:
        assert '! look(what="x"): stopped\n' in noted(STARTED, Ended(stop_reason="cancelled"))


WARNING = "Nobody says how large the window of m is, so 32,768 tokens are assumed. Set it: --window TOKENS."
UNKNOWN = ContextPlanned(turn=1, model="m", window_tokens=32_768, source="default", warning=WARNING)
PRUNED = Pruned(turn=3, results=(2, 4), to_chars=500, tokens_before=9_000, tokens_after=6_500, rewritten_tokens=4_000)
COMPACTED = Compacted(
    turn=4,
    dropped=(1, 2, 3),
    summary=UserMessage("s", origin="summary"),
    how="local_summary",
    tokens_before=12_345,
    tokens_after=5_000,
)


@pytest.mark.parametrize("draw", [drawn, noted])
def test_a_window_that_nobody_knows_is_warned_of_once(draw: Callable[..., str]) -> None:
    said = draw(UNKNOWN, Ended(stop_reason="waiting_approval"), Resumed(), UNKNOWN, Ended(stop_reason="end"))
    assert said.replace("\n", " ").count("! Nobody says how large the window of m is") == 1
    assert "--window TOKENS" in said
    other = structs.replace(UNKNOWN, model="n", warning=WARNING.replace("of m", "of n"))
    assert draw(UNKNOWN, other).count("! Nobody says") == 2, "another model has a window of its own"


@pytest.mark.parametrize("draw", [drawn, noted])
def test_a_known_window_is_named_with_who_said_it(draw: Callable[..., str]) -> None:
    planned = ContextPlanned(turn=1, model="llamacpp/m", window_tokens=8_192, source="GET /props n_ctx")
    refused = structs.replace(planned, window_tokens=4_096, source="the server's refusal")
    said = draw(planned, planned, refused)
    assert said.count("the window of llamacpp/m is 8,192 tokens (GET /props n_ctx)\n") == 1
    assert "the window of llamacpp/m is 4,096 tokens (the server's refusal)\n" in said


@pytest.mark.parametrize(("draw", "mark"), [(drawn, "↻"), (noted, "~")])
def test_what_becomes_of_the_conversation_is_one_line_each(draw: Callable[..., str], mark: str) -> None:
    emptied = structs.replace(COMPACTED, dropped=(1,), summary=None, how="sliding_window", emergency=True)
    omitted = Omitted(turn=1, model="m", what="images", why="No place for them.")
    assert draw(PRUNED, COMPACTED, emptied, omitted) == (
        f"{mark} conversation shortened: 2 results cut to 500 characters, about 9,000 → 6,500 tokens\n"
        f"{mark} conversation shortened: 3 messages summed up (local_summary), about 12,345 → 5,000 tokens\n"
        f"{mark} conversation refused by the server as too long, so shortened: 1 message left out (sliding_window), about 12,345 → 5,000 "
        "tokens\n"
        f"{mark} not sent: images; No place for them.\n"
    )
