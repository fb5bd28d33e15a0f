"""What compatible servers do differently, as data.

The decoder needs no dialect: it reads every shape in docs/protocols/chat.md. What is sent may differ.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from treadle.values.request import Finish, SchemaSupport

__all__ = ["DEEPSEEK", "FINISH", "LLAMACPP", "OPENAI", "VLLM", "Dialect"]


class Dialect(Struct, frozen=True, kw_only=True):
    """How requests to one kind of server differ.

    Attributes:
        send_reasoning: Send reasoning back in the field it came in. Some hosted APIs answer it with a 400.
        ask_usage: Send `stream_options.include_usage`.
        ask_progress: Send `return_progress`, so that reading a long prompt is seen to advance.
        continues: What to add to a request whose last message is a partial answer, so that the server goes on from it;
            None where that is not known to work.
        reasoning: What to add to a request for each value of `Options.reasoning`. Servers that know only on and off take every
            level for on. A value that is missing cannot be asked for, and is left out.
        reasoning_field: Send reasoning back in this field, whichever it came in, and with every turn that has calls, be it empty.
        schema_support: What a schema for the answer may be sent with. `alone` is right for servers we know nothing of: one that
            does not know the field ignores it or answers with a 400, and after a 400 the run asks in words; a server that
            decodes by the schema from the first token on can call no tool.
        strict_tools: Say `strict` of each tool.
        max_tokens_field: What `Options.max_tokens` is called.
        seed_field: What `Options.seed` is called.
        nine_character_ids: Ids of calls must be nine letters and digits; others are sent as such.
    """

    send_reasoning: bool = True
    reasoning_field: str | None = None
    seed_field: str = "seed"
    nine_character_ids: bool = False
    ask_usage: bool = True
    ask_progress: bool = False
    continues: dict[str, Any] | None = None
    reasoning: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: _BY_EFFORT)
    schema_support: SchemaSupport = "alone"
    strict_tools: bool = False
    max_tokens_field: str = "max_tokens"


_BY_EFFORT = {level: {"reasoning_effort": "none" if level == "off" else level} for level in ("off", "low", "medium", "high")}
_BY_TEMPLATE = {
    level: {"chat_template_kwargs": {"enable_thinking": level != "off"}} for level in ("off", "low", "medium", "high")
}

LLAMACPP = Dialect(ask_progress=True, continues={}, reasoning=_BY_TEMPLATE)
"""llama.cpp, run and seen (xllamacpp 2026.10.11549): `return_progress` gives `prompt_progress`; a last message of role
assistant is gone on from as it is, and streaming sends only what is new; `chat_template_kwargs` is accepted."""

VLLM = Dialect(reasoning=_BY_TEMPLATE)
"""vLLM 0.32 accepts `chat_template_kwargs` (captured), which templates of models that think read."""

OPENAI = Dialect(schema_support="with_tools", strict_tools=True, max_tokens_field="max_completion_tokens")
"""OpenAI's own API: a schema together with tools, `strict` tools, and no `max_tokens` for models that reason (documented)."""

DEEPSEEK = Dialect(schema_support="none")
"""DeepSeek documents `response_format` as `text` or `json_object` only."""

FINISH: dict[str, Finish] = {
    # OpenAI's own words; all captured from llama.cpp, vLLM and LiteLLM except content_filter.
    "stop": "end",
    "tool_calls": "tool_use",
    "length": "length",
    "content_filter": "refused",
    "function_call": "tool_use",
    # Reported from compatible servers, not captured: text-generation-inference, Mistral, Anthropic-like gateways.
    "eos": "end",
    "eos_token": "end",
    "stop_sequence": "end",
    "end_turn": "end",
    "tool_use": "tool_use",
    "max_tokens": "length",
    "model_length": "length",
    "safety": "refused",
    "refusal": "refused",
}
"""What a `finish_reason` means. Anything else is `unknown`: it ends a text turn and runs no calls."""
