"""Which ability is shown on which provider, and by which tests. `python -m tests.providers.table` writes docs/providers.md.

Every cell has its scripted test, `test_abilities.py::test_ABILITY[PROVIDER]`; what more there is stands in `MORE`. How a test shows
something is not claimed here, but follows from the test: `shown_by`. `test_table.py` checks that each test is there and passed.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.providers.providers import PROVIDERS

__all__ = ["ABILITIES", "MORE", "NO", "NOTES", "PAGE", "is_slow", "needs_sdk", "nodes_of", "page", "shown_by"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
HERE = "tests/providers/test_abilities.py"

ABILITIES = {
    "text": "test_text",
    "tools": "test_tools",
    "parallel tools": "test_parallel_tools",
    "images": "test_images",
    "reasoning kept": "test_reasoning_kept",
    "structured output": "test_structured_output",
    "cache tokens": "test_cache_tokens",
    "stop reasons": "test_stop_reasons",
    "errors": "test_errors",
}

_SERVERS = "tests/servers"
_CHAT_RUN = f"{_SERVERS}/test_llamacpp.py"
_ANTHROPIC_RUN = f"{_SERVERS}/test_llamacpp_anthropic.py"
_RESPONSES_RUN = f"{_SERVERS}/test_llamacpp_responses.py"
_OUTPUT_RUN = f"{_SERVERS}/test_structured_output.py::TestHeldByGrammar"
_SLOW = f"{_SERVERS}/slow/test_codecs.py"
_ANTHROPIC_SDK = "tests/conformance/test_anthropic_sdk.py"
_OPENAI_SDK = "tests/conformance/test_openai_sdk.py::test_the_same_conversation_is_the_same_request"
_RESPONSES_SDK = "tests/wire/test_responses_encode.py::TestOfficialSdk"
_GEMINI_SDK = "tests/wire/test_gemini_encode.py::TestOfficialSdk"
_OLLAMA_SDK = "tests/wire/test_ollama_encode.py::TestOfficialSdk"


def _captured(*cases: str, format: str = "chat") -> tuple[str, ...]:
    return tuple(f"tests/conformance/test_{format}_captures.py::test_whole[{case}]" for case in cases)


def _slow(*names: str) -> tuple[str, ...]:
    return tuple(f"{_SLOW}::{name}" for name in names)


_SLOW_ROW = {
    "text": _slow("test_text", "test_text_streams"),
    "tools": _slow("test_one_tool_and_an_answer", "test_a_failing_tool_is_told_to_the_model"),
    "parallel tools": _slow("test_two_tools_in_parallel_and_an_answer"),
    "stop reasons": _slow("test_text_cut_by_length", "test_a_turn_cut_by_length_does_not_run_its_calls"),
    "errors": _slow("test_a_prompt_that_does_not_fit", "test_an_unknown_model", "test_a_wrong_key"),
}

MORE: dict[str, dict[str, tuple[str, ...]]] = {
    "openai": {
        "text": (f"{_RESPONSES_RUN}::test_a_conversation_with_text_of_the_assistant",),
        "tools": (
            f"{_RESPONSES_SDK}::test_its_request_for_the_same_conversation_is_ours",
            f"{_RESPONSES_RUN}::test_what_a_turn_kept_is_accepted_back",
        ),
        "parallel tools": (
            f"{_RESPONSES_SDK}::test_its_request_for_the_same_conversation_is_ours",
            f"{_RESPONSES_RUN}::test_two_tools_in_parallel_and_an_answer[codec0]",
        ),
        "images": (f"{_RESPONSES_SDK}::test_its_types_accept_our_request",),
        "reasoning kept": (
            f"{_RESPONSES_SDK}::test_its_request_for_the_same_conversation_is_ours",
            *_captured("vllm--reasoning-responses-stream", format="responses"),
        ),
        "structured output": (
            f"{_RESPONSES_SDK}::test_its_request_for_the_same_conversation_is_ours",
            f"{_RESPONSES_SDK}::test_its_types_accept_our_request",
        ),
        "cache tokens": (f"{_RESPONSES_RUN}::test_two_tools_in_parallel_and_an_answer[codec0]",),
        "stop reasons": (f"{_RESPONSES_RUN}::test_the_bound_on_tokens_cuts_text_and_calls",),
        "errors": (f"{_RESPONSES_RUN}::test_a_prompt_that_does_not_fit",),
    },
    "openai-chat": dict.fromkeys(("tools", "parallel tools", "images", "structured output"), (_OPENAI_SDK,)),
    "any-chat": {
        ability: (*_captured(*cases), *_SLOW_ROW.get(ability, ()))
        for ability, cases in {
            "text": ("litellm--chat-stream-usage",),
            "tools": ("litellm--tools-auto-stream",),
            "parallel tools": ("litellm--tools-auto-parallel-stream",),
            "structured output": ("litellm--json-schema",),
            "cache tokens": ("litellm--chat-stream-usage",),
            "stop reasons": ("litellm--tools-auto-truncated-stream",),
            "errors": ("litellm--context-overflow", "litellm--midstream-upstream-killed"),
        }.items()
    },
    "anthropic": {
        "text": (f"{_ANTHROPIC_SDK}::test_the_same_bytes_mean_the_same[everything]", f"{_ANTHROPIC_RUN}::test_text_streams"),
        "tools": (
            f"{_ANTHROPIC_SDK}::test_the_same_conversation_is_the_same_request",
            f"{_ANTHROPIC_RUN}::test_instructions_and_a_conversation",
        ),
        "parallel tools": (
            f"{_ANTHROPIC_SDK}::test_the_same_conversation_is_the_same_request",
            f"{_ANTHROPIC_RUN}::test_two_tools_and_an_answer",
        ),
        "images": (f"{_ANTHROPIC_SDK}::test_the_same_conversation_is_the_same_request",),
        "reasoning kept": (
            f"{_ANTHROPIC_SDK}::test_the_same_bytes_mean_the_same[everything]",
            *_captured("vllm--reasoning-anthropic-stream", format="anthropic"),
        ),
        "structured output": (
            f"{_ANTHROPIC_SDK}::test_the_same_form_of_an_answer_is_the_same_request",
            f"{_ANTHROPIC_SDK}::test_a_schema_is_closed_as_the_sdk_closes_it",
        ),
        "cache tokens": (
            f"{_ANTHROPIC_SDK}::test_the_same_bytes_mean_the_same[everything]",
            f"{_ANTHROPIC_RUN}::test_two_tools_and_an_answer",
        ),
        "stop reasons": (f"{_ANTHROPIC_RUN}::test_a_turn_cut_by_length_does_not_run_its_call",),
        "errors": (f"{_ANTHROPIC_RUN}::test_a_prompt_that_does_not_fit",),
    },
    "gemini": {
        "text": (f"{_GEMINI_SDK}::test_the_same_answer",),
        "tools": (f"{_GEMINI_SDK}::test_the_same_request", f"{_GEMINI_SDK}::test_the_same_answer"),
        "parallel tools": (f"{_GEMINI_SDK}::test_the_same_answer",),
        "images": (f"{_GEMINI_SDK}::test_the_same_request",),
        "reasoning kept": (f"{_GEMINI_SDK}::test_the_same_request",),
        "structured output": (f"{_GEMINI_SDK}::test_the_same_request",),
        "stop reasons": (f"{_GEMINI_SDK}::test_the_same_answer",),
    },
    "ollama": {
        "text": (f"{_OLLAMA_SDK}::test_the_same_answer",),
        "tools": (f"{_OLLAMA_SDK}::test_the_same_request", f"{_OLLAMA_SDK}::test_the_same_answer"),
        "parallel tools": (f"{_OLLAMA_SDK}::test_the_same_answer",),
        "images": (f"{_OLLAMA_SDK}::test_the_same_request",),
        "reasoning kept": (f"{_OLLAMA_SDK}::test_the_same_request", f"{_OLLAMA_SDK}::test_the_same_answer"),
        "structured output": (f"{_OLLAMA_SDK}::test_the_same_request",),
        "stop reasons": (f"{_OLLAMA_SDK}::test_the_same_answer",),
    },
    "llamacpp": {
        "text": (f"{_CHAT_RUN}::test_a_conversation", *_captured("xllamacpp-trained--chat-stream-usage")),
        "tools": (
            f"{_CHAT_RUN}::test_run_sync",
            f"{_CHAT_RUN}::test_a_failing_tool_is_told_to_the_model",
            *_captured("xllamacpp-trained--tools-auto-stream"),
        ),
        "parallel tools": (
            f"{_CHAT_RUN}::test_two_tools_in_parallel_and_an_answer",
            *_captured("xllamacpp--tools-parallel-stream"),
        ),
        "reasoning kept": _captured("xllamacpp--reasoning-stream"),
        "structured output": (
            f"{_OUTPUT_RUN}::test_the_first_answer_is_in_the_form[options0]",
            f"{_OUTPUT_RUN}::test_with_tools_the_model_may_call_them_first_and_is_held_last",
            *_captured("xllamacpp--json-schema"),
        ),
        "cache tokens": (f"{_CHAT_RUN}::test_two_tools_in_parallel_and_an_answer",),
        "stop reasons": (
            f"{_CHAT_RUN}::test_a_turn_cut_by_length_does_not_run_its_call",
            *_captured("xllamacpp--tools-required-truncated-stream"),
        ),
        "errors": (
            f"{_CHAT_RUN}::test_a_prompt_that_does_not_fit",
            f"{_RESPONSES_RUN}::test_an_image_for_a_model_without_eyes",
            *_captured("xllamacpp--context-overflow-stream", "xllamacpp--midstream-upstream-killed"),
        ),
    },
    "vllm": {
        ability: (*_captured(*cases), *_SLOW_ROW.get(ability, ()))
        for ability, cases in {
            "text": ("vllm--chat-stream-usage",),
            "tools": ("vllm--tools-auto-stream",),
            "parallel tools": ("vllm--tools-auto-parallel-stream",),
            "reasoning kept": ("vllm--reasoning-nonstream",),
            "structured output": ("vllm--json-schema",),
            "cache tokens": ("vllm--chat-stream-usage",),
            "stop reasons": ("vllm--tools-auto-truncated-stream", "vllm--stop"),
            "errors": ("vllm--context-overflow-stream", "vllm--err-image", "vllm--midstream-engine-killed"),
        }.items()
    },
}
"""Tests beside the scripted one of each cell."""

_NO_FIELD = (
    "No message of Chat Completions has a field for reasoning. Of a history that has some, it is left out, and that is said."
)
NO: dict[tuple[str, str], str] = {
    ("openai-chat", "reasoning kept"): f"{_NO_FIELD} OpenAI's reasoning is kept in Responses.",
    ("groq", "reasoning kept"): "Shown, and not sent back: Groq answers reasoning in a message with a 400 (reported). That is said.",
    ("mistral", "reasoning kept"): "Shown, and not sent back: Mistral takes it as parts of the content, which are not written yet. That is said.",
    ("ollama", "cache tokens"): "The format has no count of them: None, never zero.",
    ("ollama-chat", "cache tokens"): "Its usage has no count of them: None, never zero.",
    ("lmstudio", "cache tokens"): "Its usage is not known to count them: None, never zero.",
    ("deepseek", "images"): "The API takes text alone. An image is answered with a 400, and the run ends with that error.",
}  # fmt: skip
"""Cells that are no ability. Their test shows what happens instead."""

NOTES: dict[tuple[str, str], str] = {
    ("any-chat", "text"): "The real server of this row is LiteLLM's proxy.",
    ("any-chat", "errors"): "By status, for a server of which nothing more is known.",
    ("openai-chat", "images"): "Images of a result follow the results, as the user's, in every Chat Completions server; that is said (`Omitted`).",
    ("gemini", "images"): "To models before Gemini 3, images of a result follow the results, as the user's.",
    ("ollama", "images"): "Images of a result follow the results, as the user's; that is said (`Omitted`).",
    ("llamacpp", "images"): "The tiny model of the suite sees none, and the server's refusal is under errors.",
    ("llamacpp", "reasoning kept"): "The tiny model does not reason: what comes is captured, what goes back is scripted.",
    ("openrouter", "reasoning kept"): "Its text. `reasoning_details`, with signatures in them, are not kept.",
    ("lmstudio", "errors"): "Wordings that users report; LM Studio documents no statuses.",
    ("together", "structured output"): "That Together takes this form was not found in its pages. If it refuses, the run asks in words.",
    ("together", "cache tokens"): "It reports them (theopenco/llmgateway#3792); of the two names in use, both are read.",
    ("deepseek", "structured output"): "No schema: the API documents `json_object` alone. Asked in words, and checked.",
    ("groq", "structured output"): "A schema for gpt-oss; other models are asked in words.",
    ("mistral", "cache tokens"): "The API counts them for requests with `prompt_cache_key`, which goes through `extra_body`.",
    ("azure", "text"): "In Responses; `chat+azure/DEPLOYMENT` is as OpenAI (Chat Completions).",
}  # fmt: skip

_WORDS = {
    "run": "the real server, in every run of the suite",
    "slow": "the real server, in `python -m tests.servers.slow` (docs/slow-servers.md); no part of the plain suite",
    "captured": "recorded bytes of this server, decoded at three cuts",
    "elsewhere": "the same format on another real server, or recorded bytes of one",
    "SDK": "the provider's official client writes the same request, or reads the same bytes alike; run by `.ci/run`, and skipped where it is not installed",
    "documented": "a scripted server plays what the provider's pages say (or, for local servers, what was captured or reported) and checks what it is sent",
    "no": "not possible, or not done, for the reason given below; its test shows what happens instead",
}  # fmt: skip
_CAPTURES_OF = {"xllamacpp": "llamacpp", "xllamacpp-trained": "llamacpp", "vllm": "vllm", "litellm": "any-chat"}
_SLOW_SERVERS = {"vllm", "any-chat"}  # LiteLLM is the other


def is_slow(node: str) -> bool:
    return node.startswith(f"{_SERVERS}/slow/")


def needs_sdk(node: str) -> bool:
    return "_sdk.py::" in node or "::TestOfficialSdk::" in node


def shown_by(provider: str, node: str) -> str:
    """How a test shows something of a provider: a word of the legend, by where the test is and what it reads."""
    if is_slow(node):
        return "slow" if provider in _SLOW_SERVERS else "elsewhere"
    if node.startswith(f"{_SERVERS}/"):
        return "run" if provider == "llamacpp" else "elsewhere"
    if needs_sdk(node):
        return "SDK"
    if capture := re.fullmatch(r"tests/conformance/test_\w+_captures\.py::\w+\[([\w-]+?)--[\w-]+\]", node):
        return "captured" if _CAPTURES_OF[capture[1]] == provider else "elsewhere"
    assert node.startswith(f"{HERE}::"), node
    return "documented"


def nodes_of(provider: str, ability: str) -> tuple[str, ...]:
    """The tests of a cell, as node ids. Those of the slow suite are named without parameters."""
    return (*MORE.get(provider, {}).get(ability, ()), f"{HERE}::{ABILITIES[ability]}[{provider}]")


def _words(provider: str, ability: str) -> list[str]:
    if (provider, ability) in NO:
        return ["no"]
    found = {shown_by(provider, node) for node in nodes_of(provider, ability)}
    words = [word for word in _WORDS if word in found]
    return words[:-1] or words  # the last is `documented`, which all have


def _anchor(provider: str, ability: str) -> str:
    return f"{provider}-{ability.replace(' ', '-')}"


def page() -> str:
    """docs/providers.md."""
    lines = [
        "# Providers and what is shown of them",
        "",
        "Written by `python -m tests.providers.table`; do not edit. `tests/providers/test_table.py` fails if this page is not what the command",
        "writes, if a test that is named here does not exist, or if one was not run or did not pass.",
        "",
        "A cell says how it was shown, the strongest first, and leads to its tests. Every cell has a scripted test too; `documented` stands",
        "only where there is nothing else. Unless a server is named as run or captured, nothing was tried on it.",
        "",
        *(f"- **{word}**: {meaning}" for word, meaning in _WORDS.items()),
        "",
        f"| provider | {' | '.join(ABILITIES)} |",
        f"|---|{'---|' * len(ABILITIES)}",
    ]
    for name, provider in PROVIDERS.items():
        cells = [f"[{', '.join(_words(name, ability))}](#{_anchor(name, ability)})" for ability in ABILITIES]
        lines.append(f"| [{provider.title}](#{name}) | {' | '.join(cells)} |")
    lines += ["", "## The tests", "", "Paths begin at `tests/`. Tests of the slow suite are named without their parameters."]
    for name, provider in PROVIDERS.items():
        lines += ["", f'### <a id="{name}"></a>{provider.title}', "", f"As `{provider.model}`.", ""]
        for ability in ABILITIES:
            said = NO.get((name, ability)) or NOTES.get((name, ability))
            lines.append(f'- <a id="{_anchor(name, ability)}"></a>**{ability}**{f": {said}" if said else ""}')
            for node in nodes_of(name, ability):
                lines.append(f"  - {shown_by(name, node)}: `{node.removeprefix('tests/')}`")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
