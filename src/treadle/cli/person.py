"""The person at the terminal: what they are shown about a call that waits, and what they say to it.

What they type is read as one of a few words, as JSON, or as text for the model, and as nothing else. What they typed before they were
asked is forgotten, so that a key pressed too early or the rest of a pasted text approves nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import click
import msgspec
from rich.console import Console
from rich.text import Text as Styled

from treadle.cli.text import boxed, exact, pretty_json
from treadle.errors import UsageError
from treadle.values.toolcalls import Approve, Decision, Deny, Edit, PendingCall, Say

__all__ = ["Person", "Quit", "person_at_terminal"]

_WORDS = {
    "y": "yes",
    "yes": "yes",
    "approve": "yes",
    "n": "no",
    "no": "no",
    "deny": "no",
    "e": "edit",
    "edit": "edit",
    "a": "always",
    "always": "always",
    "v": "view",
    "view": "view",
    "q": "quit",
    "quit": "quit",
}
_EXACT_ONLY = ("shell", "fetch")  # "yes" to one command or address says nothing about the next

Check = Callable[[Mapping[str, Decision]], None]
"""Raises UsageError if an answer cannot be taken."""


class Quit(Exception):
    """The person wants to stop here. The calls go on waiting."""


def person_at_terminal() -> Person | None:
    """Whoever can be asked; None if standard input is no terminal, or nothing can be shown on one."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    for stream in (sys.stderr, sys.stdout):  # standard output is for the answer alone, where that can be
        if stream is not None and stream.isatty():
            return Person(Console(file=stream, highlight=False, markup=False, emoji=False))
    return None


class Person:
    """Asks about calls, one after the other, and remembers what was approved for the rest of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._standing: set[tuple[str, str | None]] = set()
        self._seen: set[str] = set()

    def has_seen(self, text: str) -> bool:
        """They were shown this as what a call would do."""
        return text in self._seen

    def decide(self, calls: Sequence[PendingCall], check: Check) -> dict[str, Decision]:
        """An answer to every call. Blocks until all are given.

        Args:
            check: Whether the run would take these answers.

        Raises:
            Quit: They want to stop, or there is nothing more to read.
            KeyboardInterrupt: Ctrl-C.
        """
        answers: dict[str, Decision] = {}
        asked = [call for call in calls if not self._has_standing(call)]
        for number, call in enumerate(asked, start=1):
            if self._has_standing(call):  # since a moment ago
                continue
            count = f"  {number} of {len(asked)}" if len(asked) > 1 else ""
            ask = self._answer if call.asks == "question" else self._approval
            if answers:
                self._console.print()
            answers[call.call_id] = ask(call, count, check)
        return {call.call_id: answers.get(call.call_id, Approve()) for call in calls}

    def _has_standing(self, call: PendingCall) -> bool:
        if call.asks == "question":
            return False
        return bool({(call.name, None), (call.name, call.arguments)} & self._standing)

    def _approval(self, call: PendingCall, count: str, check: Check) -> Decision:
        is_exact = call.name in _EXACT_ONLY
        always = "this very call again" if is_exact else f"any {call.name} in this run"
        text = pretty_json(call.arguments) if call.preview is None else call.preview
        left_out = self._show_call("waits for you", call.name, text, count)
        view = f"v all ({left_out:,} more lines)" if left_out else "v arguments"
        keys = ("y yes", "n no", "e edit", f"a always ({always})", view, "q quit")
        while True:
            line = self._read(" · ".join(keys), "Run it? ")
            first, _, rest = line.partition(" ")
            match _WORDS.get(first.lower()):
                case "yes" if not rest:
                    return Approve()
                case "no":
                    return Deny(rest.strip() or self._read("", "Why not? (for the model; Enter for no reason) "))
                case "edit" if not rest:
                    if edit := self._edited(call, check):
                        return edit
                case "always" if not rest:
                    self._standing.add((call.name, call.arguments if is_exact else None))
                    return Approve()
                case "view" if not rest:
                    self._view(call, has_more=left_out > 0)
                case "quit" if not rest:
                    raise Quit
                case _:
                    self._say("Type one of the letters, then Enter.")

    def _answer(self, call: PendingCall, count: str, check: Check) -> Decision:
        options = _options(call.arguments)
        self._show_call("asks you", call.name, pretty_json(call.arguments) if call.preview is None else call.preview, count)
        keys = f"{'a number or ' if options else ''}your words · /skip [why] leaves it unanswered · /quit"
        while True:
            line = self._read(keys, "Your answer: ")
            command, _, rest = line.partition(" ")
            if command == "/quit":
                raise Quit
            if command == "/skip":
                return Deny(rest.strip())
            if line.isdecimal() and 1 <= int(line) <= len(options):
                return Say(options[int(line) - 1])
            if line:
                return Say(line)
            self._say("Say something, or /skip.")

    def _edited(self, call: PendingCall, check: Check) -> Edit | None:
        """The call with other arguments; None if the person leaves it as it is."""
        text = pretty_json(call.arguments)
        while True:
            new = self._new_text(text)
            if new is None or not new.strip() or new.strip() == pretty_json(call.arguments).strip():
                self._say("Nothing was changed.")
                return None
            text = new
            try:
                # Made compact without being understood, so that the strict gates see what was written: twice the same key, say.
                edit = Edit(msgspec.json.format(text.strip(), indent=-1))
                check({call.call_id: edit})
            except (msgspec.MsgspecError, UnicodeError) as error:
                self._say(f"That is no JSON: {error}.")
            except UsageError as error:
                self._say(error.message)
            else:
                return edit
            if self._read("", "Edit it again? (y/n) ").lower() not in ("y", "yes"):
                return None

    def _new_text(self, text: str) -> str | None:
        has_editor = (os.environ.get("VISUAL") or os.environ.get("EDITOR")) and sys.stdout.isatty()
        if has_editor:
            try:
                return click.edit(text + "\n", extension=".json")
            except click.ClickException as error:
                self._say(error.message)
        hint = "" if has_editor else "; set EDITOR for more room"
        return self._read("", f"New arguments as JSON, on one line (Enter to leave them{hint}): ")

    def _show_call(self, what: str, name: str, text: str, count: str) -> int:
        """Draw the call; how many lines of it were left out."""
        console = self._console
        head = Styled.assemble(("? ", "bold yellow"), (exact(name), "bold"), (f"  {what}", "yellow"), (count, "dim"))
        rows, left_out = boxed(text, console.width, max_rows=max(12, console.height - 8))
        self._seen.add(text)
        for row in (head, *rows):
            console.print(row, soft_wrap=True)
        return left_out

    def _view(self, call: PendingCall, *, has_more: bool) -> None:
        arguments = pretty_json(call.arguments)
        for text in (call.preview, arguments) if has_more and call.preview is not None else (arguments,):
            for row in boxed(text, self._console.width)[0]:
                self._console.print(row, soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(Styled.assemble(("  ! ", "bold yellow"), (exact(text), "yellow")), soft_wrap=True)

    def _read(self, keys: str, question: str) -> str:
        """The next line, typed after it was asked for."""
        _forget_typed()
        if keys:
            self._console.print(Styled(f"  {keys}", "dim"), soft_wrap=True)
        self._console.print(Styled(f"  {question}", "bold"), end="", soft_wrap=True)
        self._console.file.flush()
        line = b""
        try:
            line = sys.stdin.buffer.readline()  # bytes: what is not UTF-8 is no reason to break off
        finally:
            if not line:  # Ctrl-C, or the end of what there is to read
                self._console.print()
        if not line:
            raise Quit
        return line.decode("utf-8", "replace").strip()


def _forget_typed() -> None:
    """Drop what was typed and not read yet."""
    if sys.platform == "win32":
        import msvcrt

        while msvcrt.kbhit():
            msvcrt.getwch()
    else:
        import termios

        with contextlib.suppress(termios.error):
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def _options(arguments: str) -> list[str]:
    """The answers that a question offers, as `ask_user` has them."""
    try:
        given = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(given.get("options", b"[]"), type=list[str])
    except msgspec.MsgspecError:
        return []
