"""One message model for every provider.

A conversation is a sequence of `UserMessage`, `AssistantMessage`, `ToolMessage` and (inside a history) `SystemMessage`.
Parallel calls of a turn stay in one assistant message, with their text, in the order the model wrote them; each is
followed by its `ToolMessage`, in call order. `treadle.messages_to_json` and `messages_from_json` carry them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from treadle.errors import HistoryError, ToolErrorKind

__all__ = [
    "AssistantMessage",
    "Document",
    "Image",
    "Message",
    "Opaque",
    "Part",
    "SystemMessage",
    "Text",
    "Thinking",
    "ToolCall",
    "ToolMessage",
    "UserMessage",
    "joined",
    "messages_from_json",
    "messages_to_json",
]


class Text(Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    """Text the model wrote for the reader."""

    text: str


class Thinking(Struct, frozen=True, gc=False, tag_field="type", tag="thinking", omit_defaults=True):
    """Reasoning the server showed.

    Attributes:
        text: The reasoning itself.
        source: Where the server put it, so that it can go back the same way: `reasoning_content`, `reasoning`
            (fields of the message), `content` (between `<think>` tags, inside the text) or `block` (a part of its own).
        raw: For `content`: the exact characters, tags and surrounding blanks included.
        signature: What the server signed it with; it goes back with it.
    """

    text: str
    source: Literal["reasoning_content", "reasoning", "content", "block"] = "reasoning_content"
    raw: str | None = None
    signature: str | None = None


class ToolCall(Struct, frozen=True, gc=False, tag_field="type", tag="tool_call", omit_defaults=True):
    """A call the model asked for.

    Attributes:
        id: The server's id, or one we made when it sent none or sent one twice in a turn.
        name: The tool's name as the model wrote it.
        arguments: The arguments exactly as the model wrote them; may not be valid JSON.
        signature: What the server signed the call with; it goes back with it.
    """

    id: str
    name: str
    arguments: str
    signature: str | None = None


class Opaque(Struct, frozen=True, gc=False, tag_field="type", tag="opaque"):
    """A part that only the server that sent it can read, such as redacted reasoning. It goes back to that format as it came.

    Attributes:
        format: The wire format it belongs to: `anthropic`, `responses`, `gemini`.
        data: The part as JSON.
    """

    format: str
    data: str


Part: TypeAlias = Text | Thinking | ToolCall | Opaque


class SystemMessage(Struct, frozen=True, gc=False, tag_field="role", tag="system"):
    """Instructions inside a history. An agent's own instructions are not part of its messages."""

    content: str


class AssistantMessage(Struct, frozen=True, gc=False, tag_field="role", tag="assistant"):
    """One model turn: text, reasoning and calls, in the order they came."""

    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if type(part) is Text)

    @property
    def thinking(self) -> str:
        """The reasoning parts, joined."""
        return "".join(part.text for part in self.content if type(part) is Thinking)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, in order."""
        return tuple(part for part in self.content if type(part) is ToolCall)


class Image(Struct, frozen=True, gc=False, tag_field="type", tag="image"):
    """A picture, as a file's bytes. In JSON the bytes are base64.

    Attributes:
        media_type: Such as `image/png`.
    """

    data: bytes
    media_type: str

    def __repr__(self) -> str:
        return f"Image({len(self.data):,} bytes, {self.media_type!r})"


class Document(Struct, frozen=True, gc=False, tag_field="type", tag="document", omit_defaults=True):
    """A file for the model to read, such as a PDF. In JSON the bytes are base64.

    Attributes:
        media_type: Such as `application/pdf`.
        name: The file's name, if it matters.
    """

    data: bytes
    media_type: str
    name: str | None = None

    def __repr__(self) -> str:
        return f"Document({self.name or ''!r}, {len(self.data):,} bytes, {self.media_type!r})"


class UserMessage(Struct, frozen=True, gc=False, tag_field="role", tag="user", omit_defaults=True):
    """What the user said.

    Attributes:
        attachments: What came with it. It is sent before the text, in this order.
        pinned: It stays, word for word, however much the conversation is shortened.
        origin: Who said it in the user's place: the `user`, the `run` (asking for something), or a `summary` of what was left out.
            No server is told.
    """

    content: str
    attachments: tuple[Image | Document, ...] = ()
    pinned: bool = False
    origin: Literal["user", "run", "summary"] = "user"


class ToolMessage(Struct, frozen=True, gc=False, tag_field="role", tag="tool", omit_defaults=True):
    """The result of one call.

    Attributes:
        call_id: The `ToolCall.id` this answers.
        name: The tool's name.
        content: What the model reads; cut to head and tail if it was long.
        is_error: The call failed, was refused or was interrupted; `content` says how.
        full: The whole result when `content` is a cut one, up to 10 MB; else None.
        note: A remark of the run for the model, such as that this call keeps failing; sent after `content`.
        images: Pictures that the model sees with the text, if it can see.
        display: What a person is shown in place of `content`, such as a diff; None to show `content`. Never sent to a model.
        error_kind: What kind of failure it was; None where it was none, or nothing ran.
    """

    call_id: str
    name: str
    content: str
    is_error: bool = False
    full: str | None = None
    note: str | None = None
    images: tuple[Image, ...] = ()
    display: str | None = None
    error_kind: ToolErrorKind | None = None


def joined(first: AssistantMessage | None, then: AssistantMessage) -> AssistantMessage:
    """One message of a partial one and what followed it; text that meets text becomes one part."""
    if first is None:
        return then
    content = (*first.content, *then.content)
    at = len(first.content)
    if 0 < at < len(content):
        last, following = content[at - 1], content[at]
        if isinstance(last, Text) and isinstance(following, Text):
            content = (*content[: at - 1], Text(last.text + following.text), *content[at + 1 :])
    return AssistantMessage(content)


Message: TypeAlias = UserMessage | AssistantMessage | ToolMessage | SystemMessage


def messages_to_json(messages: tuple[Message, ...] | list[Message]) -> bytes:
    """The conversation as one JSON array, byte-stable: the same messages give the same bytes."""
    return msgspec.json.encode(messages)


def messages_from_json(data: bytes | str) -> tuple[Message, ...]:
    """The conversation `messages_to_json` wrote.

    Raises:
        HistoryError: The text is not such an array; the message names the place.
    """
    try:
        return msgspec.json.decode(data, type=tuple[Message, ...])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HistoryError(f"not a conversation: {error}", hint="Pass what `messages_to_json` wrote.") from None
