"""Events, drawn: for a terminal, for a pipe, as JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Protocol, TypeAlias

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text as Styled

from treadle.cli.person import Person
from treadle.cli.text import exact, harmless, one_line, shown_call, styled_rows
from treadle.values.events import (
    ApprovalRequested,
    Asked,
    Compacted,
    ContextPlanned,
    Discarded,
    Ended,
    Event,
    Failed,
    Omitted,
    Prompted,
    Pruned,
    Repaired,
    Replied,
    Resumed,
    Retried,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolProgress,
    ToolRetried,
    ToolStarted,
)
from treadle.values.messages import ToolMessage, UserMessage
from treadle.values.usage import Usage

__all__ = ["JsonLines", "Plain", "Renderer", "Terminal", "renderer_for"]

_DISPLAY_ROWS = 24
_DISPLAY_LINES_PLAIN = 12

_Key: TypeAlias = tuple[int, int]
"""Turn and position: the name of a call in its run."""

_Remarkable: TypeAlias = Retried | Discarded | Repaired | Omitted | Prompted | Pruned | Compacted
"""What the run did that is neither the model's doing nor a tool's."""


class Renderer(Protocol):
    """Shows a run's events in order; the last one of a run, or of a segment of it, is `Ended` or `Failed`."""

    def show(self, event: Event) -> None: ...

    def close(self) -> None:
        """Leave the screen as it was found, however the run was left."""
        ...


def renderer_for(*, json: bool, person: Person | None = None) -> Renderer:
    """The renderer that fits where the output goes.

    Args:
        person: Who is asked about calls, and need not be shown again what they approved.
    """
    if json:
        return JsonLines(sys.stdout.buffer)
    if sys.stdout.isatty():
        # The file is named: while a run is shown, `sys.stdout` is where tools print, and that is standard error.
        return Terminal(Console(file=sys.stdout, highlight=False, markup=False, emoji=False), person=person)
    return Plain(sys.stdout, sys.stderr, person=person)


class JsonLines:
    """One event per line, as it happens."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._encode = msgspec.json.Encoder().encode

    def show(self, event: Event) -> None:
        self._out.write(self._encode(event) + b"\n")
        self._out.flush()

    def close(self) -> None:
        pass


class _Counter:
    """What the last line of a run tells: turns, tokens, and time, without the time that a person took."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun_at = self._last_at = now()
        self._usage: Usage | None = None
        self._turns = 0

    def see(self, event: Event) -> None:
        now = self._now()
        if isinstance(event, Resumed):
            self._begun_at += now - self._last_at
        elif isinstance(event, Replied):
            self._turns += 1
            self._usage = event.usage if self._usage is None else self._usage + event.usage
        self._last_at = now

    def __str__(self) -> str:
        usage = self._usage or Usage()
        tokens = "tokens not reported"
        if usage.input_tokens is not None and usage.output_tokens is not None:
            cached = f" ({usage.cached_input_tokens:,} of them cached)" if usage.cached_input_tokens else ""
            tokens = f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out"
        if not self._turns:
            return f"{self._last_at - self._begun_at:.1f} s"
        turns = f"{self._turns} model turn{'' if self._turns == 1 else 's'}"
        return f"{turns} · {tokens} · {self._last_at - self._begun_at:.1f} s"


class Plain:
    """The answer on standard output, everything else on standard error. A tool's progress is not shown: it would fill a log."""

    def __init__(
        self, out: IO[str], notes: IO[str], *, now: Callable[[], float] = time.monotonic, person: Person | None = None
    ) -> None:
        self._out = out
        self._notes = notes
        self._person = person
        self._at_line_start = True
        self._counter = _Counter(now)
        self._running: dict[_Key, str] = {}
        self._windows = _Windows()

    def show(self, event: Event) -> None:
        self._counter.see(event)
        match event:
            case TextDelta(text=text):
                self._out.write(text)
                self._out.flush()
                self._at_line_start = text.endswith("\n")
            case ToolStarted(turn=turn, position=position, name=name, arguments=arguments):
                self._running[turn, position] = shown_call(name, arguments)
                self._note(f"> {self._running[turn, position]}")
            case ToolFinished(turn=turn, position=position, result=result, warning=warning):
                self._running.pop((turn, position), None)
                self._note(f"{'!' if result.is_error else '<'} {result.name}: {_plain_result(result, self._person)}")
                if warning:
                    self._note(f"! {warning}")
            case ToolRetried(turn=turn, position=position):
                self._note(f"~ {self._running.get((turn, position), 'a tool')}: {_remark(event)}")
            case ApprovalRequested():
                self._end_line()  # what waits is asked about, or listed at the end
            case ContextPlanned():
                if said := self._windows.said(event):
                    self._note(f"{'!' if event.warning else '~'} {said}")
            case Retried() | Discarded() | Repaired() | Omitted() | Prompted() | Pruned() | Compacted():
                self._note(f"~ {_remark(event)}")
            case Ended(stop_reason=stop_reason):
                self._stopped()
                self._note(f"{stop_reason} · {self._counter}")
            case Failed(error=error):
                self._stopped()
                self._note(f"error: {error.message}\n  {error.hint}")
            case _:
                pass

    def close(self) -> None:
        pass

    def _stopped(self) -> None:
        for call in self._running.values():
            self._note(f"! {call}: stopped")
        self._running.clear()

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._out.write("\n")
            self._out.flush()
            self._at_line_start = True

    def _note(self, text: str) -> None:
        self._end_line()
        print(harmless(text), file=self._notes, flush=True)


class _Running:
    """A tool that is running, as a line with a spinner, and a second one for what it last said."""

    def __init__(self, spinner: Spinner, call: str, began: float, now: Callable[[], float]) -> None:
        self.call = call
        self.began = began
        self.progress = ""
        self._spinner = spinner
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        mark = self._spinner.render(self._now())
        assert isinstance(mark, Styled)
        took = f"  {self._now() - self.began:.1f} s"
        call = Styled(self.call)
        call.truncate(max(8, options.max_width - len(took) - 2), overflow="ellipsis")
        yield Styled.assemble(mark, " ", call, (took, "dim"))
        if self.progress:
            said = Styled(f"  └ {self.progress}", "dim")
            said.truncate(options.max_width, overflow="ellipsis")
            yield said


class Terminal:
    """For a person who is watching."""

    def __init__(
        self,
        console: Console,
        *,
        now: Callable[[], float] = time.monotonic,
        show_prompt: bool = False,
        person: Person | None = None,
    ) -> None:
        self._console = console
        self._now = now
        self._show_prompt = show_prompt
        self._person = person
        self._counter = _Counter(now)
        self._streaming: str | None = None  # the style of the text that is being written; None: at the start of a line
        self._running: dict[_Key, _Running] = {}
        self._live: Live | None = None
        self._together = 0  # how many tools ran at the same time, at most, since the first of them started
        self._first_began = 0.0
        self._windows = _Windows()
        self._is_gap = True  # the last line is an empty one, or there is none yet

    def show(self, event: Event) -> None:
        self._counter.see(event)
        match event:
            case Asked(messages=messages):
                if self._show_prompt and isinstance(messages[-1], UserMessage):
                    self._line(("❯ ", "bold cyan"), (messages[-1].content, "bold"))
                    self._line()
            case ThinkingDelta(text=text):
                self._stream(text, "dim italic")
            case TextDelta(text=text):
                self._stream(text, "default")
            case ToolStarted(turn=turn, position=position, name=name, arguments=arguments):
                self._tool_started((turn, position), shown_call(name, arguments))
            case ToolProgress(turn=turn, position=position, text=text, fraction=fraction):
                if running := self._running.get((turn, position)):
                    running.progress = harmless(one_line(text if fraction is None else f"{fraction:.0%} {text}"))
                    self._redraw()
            case ToolFinished(turn=turn, position=position):
                self._tool_finished((turn, position), event)
            case ToolRetried(turn=turn, position=position):
                running = self._running.get((turn, position))
                self._line(("↻ ", "yellow"), (running.call if running else "a tool", ""), (f"  {_remark(event)}", "dim"))
            case ApprovalRequested():
                self._gap()  # what waits is asked about, or listed at the end
            case ContextPlanned(warning=warning):
                if said := self._windows.said(event):
                    mark, style = (("! ", "bold yellow"), "yellow") if warning else (("↻ ", "yellow"), "dim")
                    self._line(mark, (said, style))
            case Retried() | Discarded() | Repaired() | Omitted() | Prompted() | Pruned() | Compacted():
                self._line(("↻ ", "yellow"), (_remark(event), "dim"))
            case Ended(stop_reason=stop_reason):
                self._stop_running()
                style = "green" if stop_reason == "end" else "yellow"
                self._gap()
                self._line(("■ ", style), (stop_reason, f"bold {style}"), (f"  {self._counter}", "dim"))
            case Failed(error=error):
                self._stop_running()
                self._gap()
                self._line(("✗ ", "red"), (error.kind, "bold red"), (f"  {error.message}", ""))
                self._line(("  ", ""), (error.hint, "cyan"))
            case _:
                pass

    def close(self) -> None:
        self._running.clear()
        self._stop_spinning()
        self._end_line()

    def _tool_started(self, key: _Key, call: str) -> None:
        self._end_line()
        if not self._running:
            self._together, self._first_began = 0, self._now()
        self._running[key] = _Running(Spinner("dots", style="yellow"), call, self._now(), self._now)
        self._together = max(self._together, len(self._running))
        if self._live is None and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=12, transient=True)
            self._live.start()
        self._redraw()

    def _tool_finished(self, key: _Key, event: ToolFinished) -> None:
        running = self._running.pop(key, None)
        result = event.result
        if running:
            took = f"{self._now() - running.began:.1f} s"
        elif result.is_error:
            took = "denied" if event.refused == "denied" else "did not run"
        else:
            took = "answered"
        mark = ("✗", "red") if result.is_error else ("✓", "green")
        self._call_line(mark, running.call if running else result.name, (took, "dim"))
        display = _display_of(result, self._person)
        if display is not None:
            self._display(display)
        else:
            said = Styled(harmless(f"  └ {one_line(result.content)}"), "red" if result.is_error else "dim")
            if not result.is_error:  # an error is worth a second line
                said.truncate(self._console.width, overflow="ellipsis")
            self._console.print(said, soft_wrap=True)
        if event.warning:
            self._line(("  ! ", "bold yellow"), (event.warning, "yellow"))
        if self._running:
            self._redraw()
            return
        self._stop_spinning()
        if running and self._together > 1:
            took = f"{self._now() - self._first_began:.1f} s"
            self._line((f"  {self._together} tools side by side took {took} together", "dim"))
        self._gap()

    def _call_line(self, mark: tuple[str, str], call: str, took: tuple[str, str]) -> None:
        """A call on one line, whatever the width."""
        self._end_line()
        shown = Styled(call)
        shown.truncate(max(8, self._console.width - len(took[0]) - 4), overflow="ellipsis")
        self._console.print(Styled.assemble(mark, " ", shown, "  ", took), soft_wrap=True)
        self._is_gap = False

    def _display(self, text: str) -> None:
        rows = list(styled_rows(exact(text), self._console.width - 4))
        for row in rows[:_DISPLAY_ROWS]:
            self._console.print(Styled.assemble(("  │ ", "dim"), row), soft_wrap=True)
        if len(rows) > _DISPLAY_ROWS:
            self._line((f"  … {len(rows) - _DISPLAY_ROWS:,} more lines", "dim"))

    def _stop_running(self) -> None:
        """The run is over: what ran until now was stopped, and says so."""
        stopped = tuple(self._running.values())
        self._running.clear()
        self._stop_spinning()
        for running in stopped:
            self._call_line(("■", "yellow"), running.call, (f"stopped after {self._now() - running.began:.1f} s", "yellow"))

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(Group(*self._running.values()), refresh=True)

    def _stop_spinning(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _stream(self, text: str, style: str) -> None:
        if style != self._streaming:
            self._end_line()
            text = text.lstrip("\n")
        if not text:
            return
        self._streaming = style
        self._is_gap = False
        self._console.print(Styled(harmless(text), style), end="", soft_wrap=True)

    def _line(self, *pieces: tuple[str, str]) -> None:
        self._end_line()
        self._console.print(Styled.assemble(*((harmless(text), style) for text, style in pieces)), soft_wrap=True)
        self._is_gap = not pieces

    def _gap(self) -> None:
        """One empty line, not two."""
        self._end_line()
        if not self._is_gap:
            self._line()

    def _end_line(self) -> None:
        if self._streaming is not None:
            self._console.print()
            self._streaming = None


class _Windows:
    """The windows that were told of, so that a run which is carried on does not tell of them again."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def said(self, event: ContextPlanned) -> str | None:
        if self._told.get(event.model) == event.window_tokens:
            return None
        self._told[event.model] = event.window_tokens
        return event.warning or f"the window of {event.model} is {event.window_tokens:,} tokens ({event.source})"


def _remark(event: _Remarkable | ToolRetried) -> str:
    match event:
        case Retried(error=error, wait_s=wait_s, driver=driver, model=model):
            then = f"going on with {model}" if driver else "trying again"
            return f"{error.message}: {then}{f' in {wait_s:.1f} s' if wait_s else ''}"
        case ToolRetried(error=error, wait_s=wait_s):
            return f"{error.message}: trying again{f' in {wait_s:.1f} s' if wait_s else ''}"
        case Discarded():
            return "the answer broke off; what was written of it is void"
        case Repaired(index=index, what=what):
            return f"history, message {index}: {what}"
        case Omitted(what=what, why=why):
            return f"not sent: {what}; {why}"
        case Prompted(why="output"):
            return "the model was asked for the answer in its form"
        case Prompted():
            return "the reasoning reached its limit; the model was asked for the answer"
        case Pruned(results=results, to_chars=to_chars):
            return f"conversation shortened: {_plural(len(results), 'result')} cut to {to_chars:,} characters, {_shrunk(event)}"
        case Compacted(dropped=dropped, summary=summary, how=how, emergency=emergency):
            why = "refused by the server as too long, so shortened" if emergency else "shortened"
            done = "left out" if summary is None else "summed up"
            return f"conversation {why}: {_plural(len(dropped), 'message')} {done} ({how}), {_shrunk(event)}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shrunk(event: Pruned | Compacted) -> str:
    return f"about {event.tokens_before:,} → {event.tokens_after:,} tokens"


def _display_of(result: ToolMessage, person: Person | None) -> str | None:
    """What a person is shown in place of what the model reads; None to show them that. What they have approved they have seen."""
    if result.display is None or result.is_error or (person is not None and person.has_seen(result.display)):
        return None
    return result.display.rstrip("\n")


def _plain_result(result: ToolMessage, person: Person | None) -> str:
    display = _display_of(result, person)
    if display is None:
        return one_line(result.content)
    lines = exact(display).split("\n")
    if len(lines) > _DISPLAY_LINES_PLAIN:
        lines = [*lines[:_DISPLAY_LINES_PLAIN], f"… {len(lines) - _DISPLAY_LINES_PLAIN:,} more lines"]
    return "".join(f"\n    {line}" for line in lines)
