"""`output=`: when the model is held to a schema, when it is asked in words, and what follows an answer that does not fit.

With tools and a server that cannot have both there are two phases: the tools are free until the model has done with them,
then it is asked once more, for the answer alone. An answer that does not fit is sent back once, with what is wrong with it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from treadle.errors import OutputInvalid
from treadle.values.events import Prompted
from treadle.values.messages import UserMessage
from treadle.values.ports import AnswerType
from treadle.values.request import ModelRequest, SchemaSupport
from treadle.values.state import State

__all__ = ["after_answer", "shaped", "value_of"]


def shaped(request: ModelRequest, wanted: AnswerType, support: SchemaSupport, state: State) -> ModelRequest:
    """The request with what makes the model answer in the wanted form."""
    support = _support(support, state)
    if request.tools and support == "with_tools":
        return replace(request, output=wanted.schema)
    if not request.tools:
        said = f"Answer with {_form(wanted)}"
        instructions = f"{request.instructions}\n\n{said}" if request.instructions else said
        return replace(request, instructions=instructions, output=None if support == "none" else wanted.schema)
    if support == "alone" and state.output_asks:
        # Left out, not forbidden: with tools in sight these servers hold the answer to the tools' grammar, or refuse.
        return replace(request, tools=(), output=wanted.schema, options=replace(request.options, tool_choice=None))
    return request


def after_answer(state: State, wanted: AnswerType, support: SchemaSupport, *, has_tools: bool) -> Prompted | OutputInvalid | None:
    """What follows a turn without calls: nothing, if its text is the answer; a question; or the end of the run's patience."""
    try:
        wanted.decode(state.text)
        return None
    except OutputInvalid as error:
        invalid = error
    phases = 2 if has_tools and _support(support, state) != "with_tools" else 1
    if state.output_asks >= phases:
        return invalid
    if state.output_asks < phases - 1:
        text = f"Now give your answer as {_form(wanted)}"
    else:
        text = f"That is not the form that was asked for: {invalid.problem}. Write the whole answer again, as {_form(wanted)}"
    return Prompted(message=UserMessage(text, origin="run"), why="output")


def value_of(state: State, wanted: AnswerType | None) -> Any:
    """The answer as a value; None if the run has not come to one."""
    return wanted.decode(state.text) if wanted is not None and state.stop_reason == "end" else None


def _support(support: SchemaSupport, state: State) -> SchemaSupport:
    return "none" if state.schema_refused else support


def _form(wanted: AnswerType) -> str:
    schema = msgspec.json.encode(wanted.schema.schema).decode()
    return f"one JSON value that fits this JSON Schema, and with nothing before or after it:\n{schema}"
