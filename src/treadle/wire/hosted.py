"""What hosted providers do differently in Chat Completions, as data. Sources: docs/protocols/chat.md, "Hosted providers".

None of it was tried on the providers' own servers.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec.structs import replace

from treadle.wire import dialects
from treadle.wire.dialects import Dialect

__all__ = ["DEEPSEEK", "OPENAI_CHAT", "groq", "mistral", "openrouter", "together", "xai"]

_LEVELS = ("low", "medium", "high")
_Reasoning = dict[str, dict[str, Any]]


def _efforts(*levels: str) -> _Reasoning:
    return {level: {"reasoning_effort": level} for level in levels}


OPENAI_CHAT = replace(dialects.OPENAI, send_reasoning=False)
"""OpenAI and Azure OpenAI: no message has a field for reasoning."""

DEEPSEEK = replace(
    dialects.DEEPSEEK,
    reasoning_field="reasoning_content",
    reasoning={
        "off": {"thinking": {"type": "disabled"}},
        **{level: {"thinking": {"type": "enabled"}, "reasoning_effort": level} for level in _LEVELS},
    },
)
"""DeepSeek answers a turn with calls that comes back without its reasoning with a 400."""


def groq(model: str) -> Dialect:
    """Reasoning that is sent back is answered with a 400; what can be asked for depends on the model."""
    reasoning: _Reasoning = {}
    if "gpt-oss" in model:
        reasoning = _efforts(*_LEVELS)
    elif "qwen3" in model:
        reasoning = {"off": {"reasoning_effort": "none"}} | {level: {"reasoning_effort": "default"} for level in _LEVELS}
    takes_schemas = "gpt-oss" in model
    return Dialect(send_reasoning=False, reasoning=reasoning, schema_support="alone" if takes_schemas else "none")


def together(model: str) -> Dialect:
    """gpt-oss takes an effort; of other models reasoning can only be switched on and off."""
    if "gpt-oss" in model:
        return Dialect(reasoning=_efforts(*_LEVELS))
    return Dialect(reasoning={level: {"reasoning": {"enabled": level != "off"}} for level in ("off", *_LEVELS)})


def mistral(model: str) -> Dialect:
    """Fields that are not Mistral's own are answered with a 422; ids of calls are nine letters and digits."""
    adjustable = not model.startswith("magistral")  # these always reason
    efforts = {"off": {"reasoning_effort": "none"}} | {level: {"reasoning_effort": "high"} for level in _LEVELS}
    return Dialect(
        ask_usage=False,
        send_reasoning=False,
        seed_field="random_seed",
        nine_character_ids=True,
        reasoning=efforts if adjustable else {},
    )


def xai(model: str) -> Dialect:
    """Which efforts there are depends on the model; one that has none answers the field with a 400."""
    if model.startswith("grok-3-mini"):
        return Dialect(reasoning=_efforts("low", "high"))
    if model.startswith("grok-4.3"):
        return Dialect(reasoning={"off": {"reasoning_effort": "none"}} | _efforts(*_LEVELS))
    return Dialect(reasoning=_efforts(*_LEVELS) if re.match(r"grok-4\.[5-9]", model) else {})


def openrouter(model: str) -> Dialect:
    """OpenRouter translates for every model; only Mistral's rule for ids shows through."""
    return Dialect(nine_character_ids=model.startswith("mistralai/"))
