"""Events, drawn: for a terminal, for a pipe, as JSON lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import IO, Protocol

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text as Styled

from treadle.values.events import (
    Asked,
    Discarded,
    Ended,
    Event,
    Failed,
    Prompted,
    Repaired,
    Replied,
    Retried,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
)
from treadle.values.messages import ToolMessage, UserMessage
from treadle.values.usage import Usage

__all__ = ["JsonLines", "Plain", "Renderer", "Terminal", "harmless", "renderer_for"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PREVIEW_CHARS = 200


class Renderer(Protocol):
    """Shows a run's events in order; the last one is `Ended` or `Failed`."""

    def show(self, event: Event) -> None: ...


def renderer_for(*, json: bool) -> Renderer:
    """The renderer that fits where the output goes."""
    if json:
        return JsonLines(sys.stdout.buffer)
    if sys.stdout.isatty():
        return Terminal(Console(highlight=False, markup=False, emoji=False))
    return Plain(sys.stdout, sys.stderr)


def harmless(text: str) -> str:
    """The text without characters that could steer a terminal or reverse what is read. A model's output is foreign."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


class JsonLines:
    """One event per line, as it happens."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._encode = msgspec.json.Encoder().encode

    def show(self, event: Event) -> None:
        self._out.write(self._encode(event) + b"\n")
        self._out.flush()


class _Counter:
    """What the last line of a run tells: turns, tokens, time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun_at = now()
        self._usage: Usage | None = None
        self._turns = 0

    def add(self, usage: Usage) -> None:
        self._turns += 1
        self._usage = usage if self._usage is None else self._usage + usage

    def __str__(self) -> str:
        usage = self._usage or Usage()
        tokens = "tokens not reported"
        if usage.input_tokens is not None and usage.output_tokens is not None:
            cached = f" ({usage.cached_input_tokens:,} of them cached)" if usage.cached_input_tokens else ""
            tokens = f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out"
        turns = f"{self._turns} model turn{'' if self._turns == 1 else 's'}"
        return f"{turns} · {tokens} · {self._now() - self._begun_at:.1f} s"


class Plain:
    """The answer on standard output, everything else on standard error."""

    def __init__(self, out: IO[str], notes: IO[str], *, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._notes = notes
        self._at_line_start = True
        self._counter = _Counter(now)

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text=text):
                self._out.write(text)
                self._out.flush()
                self._at_line_start = text.endswith("\n")
            case ToolStarted(name=name, arguments=arguments):
                self._note(f"> {_call(name, arguments)}")
            case ToolFinished(result=result):
                self._note(f"{'!' if result.is_error else '<'} {result.name}: {_preview(result.content)}")
            case Replied(usage=usage):
                self._counter.add(usage)
            case Retried() | Discarded() | Repaired() | Prompted():
                self._note(f"~ {_remark(event)}")
            case Ended(stop_reason=stop_reason):
                self._note(f"{stop_reason} · {self._counter}")
            case Failed(error=error):
                self._note(f"error: {error.message}\n  {error.hint}")
            case _:
                pass

    def _note(self, text: str) -> None:
        if not self._at_line_start:
            self._out.write("\n")
            self._out.flush()
            self._at_line_start = True
        print(harmless(text), file=self._notes, flush=True)


class _Running:
    """A tool that is running, as a line with a spinner."""

    def __init__(self, spinner: Spinner, call: str, began: float, now: Callable[[], float]) -> None:
        self.call = call
        self.began = began
        self._spinner = spinner
        self._now = now

    def __rich__(self) -> Styled:
        mark = self._spinner.render(self._now())
        assert isinstance(mark, Styled)
        return Styled.assemble(mark, " ", self.call, (f"  {self._now() - self.began:.1f} s", "dim"))


class Terminal:
    """For a person who is watching."""

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic, show_prompt: bool = False) -> None:
        self._console = console
        self._now = now
        self._show_prompt = show_prompt
        self._counter = _Counter(now)
        self._streaming: str | None = None  # the style of the text that is being written; None: at the start of a line
        self._running: dict[tuple[int, int], _Running] = {}
        self._live: Live | None = None
        self._together = 0  # how many tools ran at the same time, at most, since the first of them started
        self._first_began = 0.0

    def show(self, event: Event) -> None:
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
                self._tool_started((turn, position), _call(name, arguments))
            case ToolFinished(turn=turn, position=position, result=result):
                self._tool_finished((turn, position), result)
            case Replied(usage=usage):
                self._counter.add(usage)
            case Retried() | Discarded() | Repaired() | Prompted():
                self._line(("↻ ", "yellow"), (_remark(event), "dim"))
            case Ended(stop_reason=stop_reason):
                self._stop_spinning()
                style = "green" if stop_reason == "end" else "yellow"
                self._line()
                self._line(("■ ", style), (stop_reason, f"bold {style}"), (f"  {self._counter}", "dim"))
            case Failed(error=error):
                self._stop_spinning()
                self._line()
                self._line(("✗ ", "red"), (error.kind, "bold red"), (f"  {error.message}", ""))
                self._line(("  ", ""), (error.hint, "cyan"))
            case _:
                pass

    def _tool_started(self, key: tuple[int, int], call: str) -> None:
        self._end_line()
        if not self._running:
            self._together, self._first_began = 0, self._now()
        self._running[key] = _Running(Spinner("dots", style="yellow"), call, self._now(), self._now)
        self._together = max(self._together, len(self._running))
        if self._live is None and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=12, transient=True)
            self._live.start()
        self._redraw()

    def _tool_finished(self, key: tuple[int, int], result: ToolMessage) -> None:
        running = self._running.pop(key, None)
        took = f"  {self._now() - running.began:.1f} s" if running else "  did not run"
        mark = ("✗ ", "red") if result.is_error else ("✓ ", "green")
        self._line(mark, (running.call if running else result.name, ""), (took, "dim"))
        self._line(("  └ ", "dim"), (_preview(result.content), "red" if result.is_error else "dim"))
        if self._running:
            self._redraw()
        elif running:
            self._stop_spinning()
            if self._together > 1:
                took = f"{self._now() - self._first_began:.1f} s"
                self._line((f"  {self._together} tools side by side took {took} together", "dim"))
            self._line()

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(Group(*self._running.values()), refresh=True)

    def _stop_spinning(self) -> None:
        self._running.clear()
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
        self._console.print(Styled(harmless(text), style), end="", soft_wrap=True)

    def _line(self, *pieces: tuple[str, str]) -> None:
        self._end_line()
        self._console.print(Styled.assemble(*((harmless(text), style) for text, style in pieces)), soft_wrap=True)

    def _end_line(self) -> None:
        if self._streaming is not None:
            self._console.print()
            self._streaming = None


def _remark(event: Retried | Discarded | Repaired | Prompted) -> str:
    """What the run did that is neither the model's doing nor a tool's."""
    match event:
        case Retried(error=error, wait_s=wait_s, driver=driver, model=model):
            then = f"going on with {model}" if driver else "trying again"
            return f"{error.message}: {then}{f' in {wait_s:.1f} s' if wait_s else ''}"
        case Discarded():
            return "the answer broke off; what was written of it is void"
        case Repaired(index=index, what=what):
            return f"history, message {index}: {what}"
        case Prompted():
            return "the reasoning reached its limit; the model was asked for the answer"


def _call(name: str, arguments: str) -> str:
    """A call as one would write it in Python."""
    try:
        given = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return f"{name} {_preview(arguments)}"
    return f"{name}({_preview(', '.join(f'{key}={bytes(value).decode()}' for key, value in given.items()))})"


def _preview(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW_CHARS else line[: _PREVIEW_CHARS - 1] + "…"
