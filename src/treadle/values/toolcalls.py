"""What a tool gives back, and a call that waits for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec
from msgspec import Struct

from treadle.errors import ToolErrorKind, UsageError
from treadle.values.messages import Image, ToolMessage

__all__ = [
    "Approvals",
    "Approve",
    "Concurrency",
    "Decision",
    "Deny",
    "Edit",
    "Outcome",
    "PendingCall",
    "Rule",
    "Say",
    "ToolResult",
    "approve",
    "deny",
    "edit",
    "say",
]

Concurrency: TypeAlias = Literal["read_only", "exclusive", "interactive"]
"""`read_only` calls of a turn run together; an `exclusive` one runs alone, or alone in its group; an `interactive` one runs
alone, and the time it takes is a person's."""


class ToolResult(Struct, frozen=True, kw_only=True):
    """What a tool may return, where what the model reads is not what a person wants to see.

    Attributes:
        content: For the model: text, or any value that JSON can express.
        images: For the model, if it can see.
        display: For a person, such as a diff; None to show them `content`. Bounded like `content`.
        details: For debugging: any value that JSON can express. In the `ToolFinished` event and the journal, nowhere else.
        is_error: The model is told that the call failed.
        error_kind: And how; it is an error then too.
    """

    content: Any
    images: tuple[Image, ...] = ()
    display: str | None = None
    details: Any = None
    is_error: bool = False
    error_kind: ToolErrorKind | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """How one execution of a call came out.

    Attributes:
        details: For debugging.
        warning: For the person: what the tool did wrong without failing.
        retry_after_s: How long a failed tool asked to wait before it is called again.
    """

    result: ToolMessage
    details: Any = None
    warning: str | None = None
    retry_after_s: float | None = None


class PendingCall(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A call that waits for a person.

    Attributes:
        call_id: What `resume` takes the answer under.
        arguments: JSON, as the model wrote it.
        asks: `approval`: may it run (`approve`, `deny`, `edit`)? `question`: the model asks the person (`say`, `deny`).
        preview: What the call would do, such as a diff or a command; or the question. None if its tool has no preview.
    """

    call_id: str
    name: str
    arguments: str
    asks: Literal["approval", "question"] = "approval"
    concurrency: Concurrency = "exclusive"
    preview: str | None = None


class Approve(Struct, frozen=True, gc=False, tag_field="type", tag="approve"):
    """Run the call as it is."""


class Deny(Struct, frozen=True, gc=False, tag_field="type", tag="deny"):
    """Do not run the call; the model is told why."""

    reason: str = ""


class Edit(Struct, frozen=True, gc=False, tag_field="type", tag="edit"):
    """Run the call with these arguments instead, as JSON; the model is told."""

    arguments: str


class Say(Struct, frozen=True, gc=False, tag_field="type", tag="say"):
    """What the person says to the model's question: the call's result."""

    text: str


Decision: TypeAlias = Approve | Deny | Edit | Say

approve = Approve()
"""Run the call as it is."""


def deny(reason: str = "") -> Deny:
    """Do not run the call; the model reads the reason."""
    return Deny(reason)


def edit(arguments: Mapping[str, Any]) -> Edit:
    """Run the call with these arguments instead of the model's. They pass the same gates, and the history says so.

    Raises:
        UsageError: JSON cannot express them.
    """
    try:
        return Edit(msgspec.json.encode(dict(arguments)).decode())
    except (TypeError, UnicodeError, RecursionError) as error:
        raise UsageError(
            f"edit(): the arguments cannot be written as JSON: {error}", hint="Pass a dict of JSON values."
        ) from None


def say(text: str) -> Say:
    """What the person says to the model's question."""
    return Say(text)


class Rule(Struct, frozen=True, kw_only=True):
    """One line of an approval policy. A call is decided by the first rule that fits it.

        (Rule(tool="shell", arguments={"command": "git status*"}, action="allow"), Rule(tool="shell", action="ask"))

    Attributes:
        action: `allow` it to run, `ask` a person, or `deny` it.
        tool: A tool's name, or a pattern (`*`, `?`, `[abc]`); None for any.
        concurrency: A class; None for any. To allow all that is `read_only` does not allow what asks although it only reads, such as
            `fetch`.
        arguments: Patterns by argument name; all must fit. They are held against what the call would act on, as its tool says
            it: a path as it is inside the workspace, a command only if no shell would read more into it. Where the tool cannot
            say, no `allow` fits, and a person is asked if a `deny` might.
        reason: For `deny`: what the model is told.
    """

    action: Literal["allow", "ask", "deny"]
    tool: str | None = None
    concurrency: Concurrency | None = None
    arguments: dict[str, str] = {}
    reason: str = ""

    def __post_init__(self) -> None:
        if self.action not in ("allow", "ask", "deny"):
            raise UsageError(f"Rule(action={self.action!r}) cannot work", hint="Write allow, ask or deny.")
        if self.concurrency is not None and self.concurrency not in get_args(Concurrency):
            hint = f"Write one of {', '.join(get_args(Concurrency))}."
            raise UsageError(f"Rule(concurrency={self.concurrency!r}) fits no call", hint=hint)
        texts = [self.reason, *(() if self.tool is None else (self.tool or None,)), *_texts(self.arguments)]
        if not all(isinstance(text, str) for text in texts):
            hint = "A tool is a name or a pattern, arguments are patterns by name: all of them texts."
            raise UsageError(f"{self!r} fits no call", hint=hint)


def _texts(arguments: object) -> list[object]:
    if not isinstance(arguments, dict):
        return [None]
    pairs = cast("dict[object, object]", arguments)
    return [*pairs, *pairs.values()]


Approvals: TypeAlias = Literal["never", "always"] | Sequence[Rule] | Callable[[PendingCall], Decision | Literal["ask"]]
"""Who is asked before a call runs. Rules, tried in order; a call that none fits is asked about if its tool says so (built-in
write, edit, shell and fetch do). `never` asks about nothing, `always` about every call. A function decides for each call, or
answers `"ask"`. Questions to the person are always asked."""
