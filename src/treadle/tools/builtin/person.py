"""Asking the person who runs the agent."""

from __future__ import annotations

from typing import Annotated, NoReturn

from treadle.tools.function import tool

__all__ = ["ask_user"]


def _question(question: str, options: list[str]) -> str:
    return "\n".join((question, *(f"{n}. {option}" for n, option in enumerate(options, start=1))))


@tool(concurrency="interactive", is_question=True, preview=_question, repeatable=True)
async def ask_user(
    question: Annotated[str, "One question, whole and clear."],
    options: Annotated[list[str], "Answers to choose from, if there are a few. The person may say something else."] = [],  # noqa: B006
) -> NoReturn:
    """Ask the person you work for, when you cannot find out for yourself. Their words are the result."""
    raise AssertionError("a question is answered by a person, so this is never called")
