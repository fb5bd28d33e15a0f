"""What the decoders of every format share: bytes go in, errors do not come out, and a reply is whole only if it was said to be."""

from __future__ import annotations

import contextlib
from typing import Generic, Protocol, TypeVar

from treadle.errors import BadStream, ModelError
from treadle.values.events import Delta
from treadle.values.usage import Usage
from treadle.wire.stream import AnswerReader

__all__ = ["EventDecoder", "ReplyDecoder", "is_cut"]


def is_cut(usage: Usage, max_tokens: int | None) -> bool:
    """As many tokens came as were asked for at most: the reply was cut, whatever the server calls it.

    llama.cpp says `completed` of such a response (seen), and LiteLLM makes `end_turn` or `tool_use` of that (seen). A reply that
    happens to end at its bound counts as cut.
    """
    return max_tokens is not None and usage.output_tokens is not None and usage.output_tokens >= max_tokens


class _Fold(Protocol):
    """Where a reply is collected."""

    @property
    def empty(self) -> bool: ...

    def take(self) -> list[Delta]: ...


_FoldT = TypeVar("_FoldT", bound=_Fold)


class ReplyDecoder(Generic[_FoldT]):
    """Decodes one reply, as `treadle.wire.codec.Decoder` says. A format raises its errors in `_feed`, `_close` and `_judge`."""

    progress: int
    finished: bool
    done: bool
    error: ModelError | None

    def __init__(self, fold: _FoldT) -> None:
        self.progress = 0
        self.finished = False
        self.done = False
        self.error = None
        self._fold = fold
        self._said: str | None = None  # why the server stopped, in its own word

    @property
    def began(self) -> bool:
        return not self._fold.empty or self.finished

    def feed(self, data: bytes) -> list[Delta]:
        if self.done:
            return []
        try:
            self._feed(data)
        except ModelError as error:
            self._fail(error)
        return self._fold.take()

    def close(self, *, clean: bool = True) -> list[Delta]:
        if not self.done:
            try:
                self._close(clean)
            except ModelError as error:
                self._fail(error)
        self._flush()
        if self.error is None:
            try:
                self._judge()
            except ModelError as error:
                self._fail(error)
        return self._fold.take()

    def _feed(self, data: bytes) -> None:
        raise NotImplementedError

    def _close(self, clean: bool) -> None:
        """The stream has ended, and nothing said that it would."""
        raise NotImplementedError

    def _flush(self) -> None:
        """Give what was held back because more could have followed it."""

    def _judge(self) -> None:
        """Raise what is wrong with the reply, now that all of it is there."""
        raise NotImplementedError

    def _fail(self, error: ModelError) -> None:
        self.error = error
        self.done = True
        self.finished = False

    @property
    def _where(self) -> str:
        """Where the stream ended, in a sentence."""
        return "after its answer began" if not self._fold.empty else "after nothing at all"


class EventDecoder(ReplyDecoder[_FoldT]):
    """Decodes one reply that comes as server-sent events, or as the plain JSON that some servers send in their place.

    Memory is bounded by the longest frame (16 MiB), the whole stream (64 MiB) and the reply itself.
    """

    def __init__(self, fold: _FoldT, answer: AnswerReader | None = None) -> None:
        super().__init__(fold)
        self._answer = answer or AnswerReader()
        self._wavered = False  # the answer went on after a reason: only a proper end makes it whole now

    def _frame(self, event: str, payload: bytes, /) -> None:
        """One event, with the name that its line has; `payload` may be empty (a ping)."""
        raise NotImplementedError

    def _whole(self, body: bytes) -> None:
        """The answer is this JSON, and no stream."""
        raise NotImplementedError

    def _feed(self, data: bytes) -> None:
        for event, payload in self._answer.feed(data):
            self._frame(event, payload)
            if self.done:
                return

    def _close(self, clean: bool) -> None:
        if (whole := self._answer.whole()) is not None:
            self._whole(whole)
            return
        for event, payload in self._answer.close():
            with contextlib.suppress(BadStream):  # the last frame was cut: a missing reason says so
                self._frame(event, payload)
        if self._wavered and clean:
            self.finished = self._said is not None

    def _end(self) -> None:
        """The end mark of the stream has come."""
        self.done = True
        self.finished = self._said is not None

    def _stop(self, said: object) -> None:
        """The server has said why it stopped."""
        self._said = str(said)[:100]
        self.finished = not self._wavered
        self.progress += 1

    def _note_more(self, before: int) -> None:
        """Call it after what may be more of the answer, with the progress from before."""
        if self._said is not None and self.progress != before:
            self._wavered = True
            self.finished = False
