"""Events, drawn: for a terminal, for a pipe, as JSON lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import IO, Protocol

import msgspec
from rich.console import Console
from rich.text import Text as Styled

from treadle.values.events import (
    Asked,
    Ended,
    Event,
    Failed,
    Replied,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolFinished,
    ToolStarted,
)
from treadle.values.messages import UserMessage
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


class Plain:
    """The answer on standard output, everything else on standard error."""

    def __init__(self, out: IO[str], notes: IO[str]) -> None:
        self._out = out
        self._notes = notes
        self._at_line_start = True

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text=text):
                self._out.write(text)
                self._out.flush()
                self._at_line_start = text.endswith("\n")
            case ToolStarted(name=name, arguments=arguments):
                self._note(f"> {name} {arguments}")
            case ToolFinished(result=result):
                self._note(f"{'!' if result.is_error else '<'} {result.name} {_preview(result.content)}")
            case Ended(stop_reason=stop_reason):
                self._end_line()
                if stop_reason != "end":
                    self._note(f"stopped: {stop_reason}")
            case Failed(error=error):
                self._end_line()
                self._note(f"error: {error.message}\n  {error.hint}")
            case _:
                pass

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._out.write("\n")
            self._out.flush()
            self._at_line_start = True

    def _note(self, text: str) -> None:
        self._end_line()
        print(harmless(text), file=self._notes, flush=True)


class Terminal:
    """For a person who is watching."""

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic, show_prompt: bool = False) -> None:
        self._console = console
        self._now = now
        self._show_prompt = show_prompt
        self._started_at: dict[tuple[int, int], float] = {}
        self._begun_at = now()
        self._column = 0  # 0: at the start of a line
        self._style = ""
        self._calling: set[tuple[int, int]] = set()
        self._usage: Usage | None = None
        self._turns = 0

    def show(self, event: Event) -> None:
        match event:
            case Asked(messages=messages):
                if self._show_prompt and isinstance(messages[-1], UserMessage):
                    self._line(("❯ ", "bold cyan"), (messages[-1].content, "bold"))
            case ThinkingDelta(text=text):
                self._stream(text, "dim italic")
            case TextDelta(text=text):
                self._stream(text, "")
            case ToolCallDelta(turn=turn, position=position, name=name):
                if (turn, position) not in self._calling:
                    self._calling.add((turn, position))
                    self._line(("◌ ", "dim"), (f"calls {name}", "dim"))
            case ToolStarted(turn=turn, position=position, name=name, arguments=arguments):
                self._started_at[turn, position] = self._now()
                self._line(("● ", "yellow"), (name, "bold"), (f" {_preview(arguments)}", "dim"))
            case ToolFinished(turn=turn, position=position, result=result):
                began = self._started_at.get((turn, position))
                took = "did not run" if began is None else f"{self._now() - began:.1f} s"
                mark = ("✗ ", "red") if result.is_error else ("✓ ", "green")
                self._line(mark, (result.name, "bold"), (f" {took} ", "dim"), (_preview(result.content), ""))
            case Replied(usage=usage):
                self._turns += 1
                self._usage = usage if self._usage is None else self._usage + usage
            case Ended(stop_reason=stop_reason):
                self._line()
                self._line(
                    ("■ ", "green" if stop_reason == "end" else "yellow"),
                    (stop_reason, "bold"),
                    (f"  {self._counts()}", "dim"),
                )
            case Failed(error=error):
                self._line()
                self._line(("✗ ", "red"), (error.kind, "bold red"), (f"  {error.message}", ""))
                self._line(("  ", ""), (error.hint, "cyan"))
            case _:
                pass

    def _counts(self) -> str:
        usage = self._usage or Usage()
        tokens = "tokens not reported"
        if usage.input_tokens is not None and usage.output_tokens is not None:
            cached = f" ({usage.cached_input_tokens:,} cached)" if usage.cached_input_tokens else ""
            tokens = f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out"
        turns = f"{self._turns} model turn{'' if self._turns == 1 else 's'}"
        return f"{turns} · {tokens} · {self._now() - self._begun_at:.1f} s"

    def _stream(self, text: str, style: str) -> None:
        if style != self._style:
            self._end_line()
            self._style = style
        text = harmless(text)
        if not self._column:
            text = text.lstrip("\n")
        self._console.print(Styled(text, style), end="", soft_wrap=True)
        if text:
            self._column = 0 if text.endswith("\n") else 1

    def _line(self, *pieces: tuple[str, str]) -> None:
        self._end_line()
        if pieces:
            self._console.print(Styled.assemble(*((harmless(text), style) for text, style in pieces)), soft_wrap=True)

    def _end_line(self) -> None:
        if self._column:
            self._console.print()
            self._column = 0


def _preview(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW_CHARS else line[: _PREVIEW_CHARS - 1] + "…"
