"""Context windows of hosted models: where providers tell them, and a table by name for those that do not.

A row is as good as its source on its date.

The window is input and output together, in tokens; of a model whose input has a limit of its own it is that limit, since nothing longer
can be sent. A model that fits no row has none: a window that is guessed too large is
worse than none.
"""

from __future__ import annotations

import re

from msgspec import Struct

__all__ = ["WINDOWS", "Window", "WindowField", "window_of"]


class WindowField(Struct, frozen=True, kw_only=True):
    """Where a provider tells the window of a model.

    Attributes:
        path: Below the base address; `{model}` is filled in. Without it the answer is a list of all models, to be searched.
        name: The field with the window, in tokens.
    """

    path: str
    name: str


class Window(Struct, frozen=True, kw_only=True):
    """What is known of the models that a pattern describes.

    Attributes:
        pattern: Of the whole name, without a date at its end.
        source: Where the number was read; "via" is who was seen to quote that page.
    """

    pattern: str
    tokens: int
    source: str
    read: str = "2026-11"


_OPENAI = "platform.openai.com/docs/models"
_XAI = "docs.x.ai/developers/models"

WINDOWS: tuple[Window, ...] = (
    Window(pattern=r"gpt-5(\.\d)?-chat(-latest)?", tokens=128_000, source=f"{_OPENAI}, via labring/fastgpt-plugin"),
    # 1,050,000 in all, of which 128,000 are the answer's.
    Window(pattern=r"gpt-5\.[45](-pro)?", tokens=922_000, source="input of gpt-5.4: wavespeed.ai/llm/openai/gpt-5.4"),
    # 400,000 in all, of which 272,000 are the answer's.
    Window(pattern=r"gpt-5-pro", tokens=128_000, source=f"{_OPENAI}/gpt-5-pro, via api.koog.ai"),
    # 400,000 in all, of which 128,000 are the answer's. "Input tokens exceed the configured limit of 272,000 tokens" (reported).
    Window(
        pattern=r"gpt-5(\.[1-3])?(-(mini|nano|pro|codex))?",
        tokens=272_000,
        source="input limit: community.openai.com/t/1344734, vercel.com/ai-gateway",
    ),
    Window(pattern=r"gpt-4\.1(-(mini|nano))?", tokens=1_047_576, source=f"{_OPENAI}, via chatai.guide"),
    Window(pattern=r"(gpt-4o(-mini)?|chatgpt-4o-latest)", tokens=128_000, source=f"{_OPENAI}, via docs.uipath.com"),
    Window(pattern=r"o3", tokens=200_000, source=f"{_OPENAI}, via learnai.larconnectado.com"),
    Window(pattern=r"deepseek-(flash|v4-flash|v4-pro)", tokens=1_000_000, source="api-docs.deepseek.com/quick_start/pricing"),
    Window(pattern=r"grok-4\.5", tokens=500_000, source="docs.x.ai/developers/grok-4-5, via Zoo-Code-Org/Zoo-Code issue 866"),
    Window(pattern=r"grok-4\.3", tokens=1_000_000, source=f"{_XAI}, via genai_otel_instrument 1.2.2"),
    Window(pattern=r"grok-4\.20(-\d{4})?(-(non-)?reasoning)?", tokens=1_000_000, source=f"{_XAI}, via docs.apiyi.com"),
    Window(pattern=r"grok-4(-0709|-latest)?", tokens=256_000, source=f"{_XAI}, via openrouter.ai/x-ai/grok-4"),
)
"""The first row that fits decides."""

_DATE = re.compile(r"-20\d\d-\d\d-\d\d$")


def window_of(model: str) -> Window | None:
    """What the table says of a model; None if it says nothing."""
    name = _DATE.sub("", model)
    return next((row for row in WINDOWS if re.fullmatch(row.pattern, name)), None)
