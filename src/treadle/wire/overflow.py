"""A request that is too large for the model: how servers say so, and the sizes that they name.

One table for every wire format, because gateways pass on the words of whatever is behind them. Sources: docs/protocols/chat.md,
"Overflow".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from treadle.errors import ContextOverflow, ModelError
from treadle.wire.untyped import array, object_, string

__all__ = ["is_overflow", "made", "server_words", "words_of_body"]

_LOOKED_AT = 4_000  # characters: what follows may quote the prompt
_BEGINNING = 500  # characters of a body that is plain text
_DEPTH = 4  # objects in each other, and a body in a string

_HOLDERS = ("error", "message", "detail")
"""The fields that a server's words are in; each may be a text, an object of the same kind, or a list of them (FastAPI's `detail`)."""
_QUOTED = re.compile(
    r"(\bgot['\"]?:?|['\"]?\b(input|ctx|content)['\"]?:|\binput_value=)\s*(?=['\"{\[]).*",  # "got 'hi'"; vLLM: "'input': 'hot'" (captured)
    re.IGNORECASE | re.DOTALL,
)
"""Where a message begins to quote the request, which may say anything."""
_MAX_TOKENS = 10**9  # a larger number is no count of tokens

_N = r"(\d[\d,]{0,12})"

_OVERFLOW = re.compile(
    r"exceeds the available context size"  # llama.cpp (captured), LiteLLM in front of it (captured)
    r"|exceed_context_size_error"  # the same (captured)
    r"|maximum context length"  # vLLM (captured), OpenAI, DeepSeek, OpenRouter, Mistral, SGLang
    r"|context_length_exceeded|exceeds the context window"  # OpenAI, Groq
    r"|ContextWindowExceeded"  # LiteLLM (captured)
    r"|cannot be greater than max_model_len"  # vLLM, of max_tokens (captured)
    r"|parameter=input_tokens"  # vLLM (captured)
    r"|longer than the (model'?s context length|maximum model length)"  # SGLang, Together; vLLM with images
    r"|model'?s context length is only"  # vLLM
    r"|input tokens exceed the configured limit of"  # OpenAI, GPT-5
    r"|prompt is too long|exceed context limit"  # Anthropic
    r"|input token count.{0,40}exceeds the maximum number of tokens"  # Gemini
    r"|maximum prompt length is \d"  # xAI
    r"|maximum allowed (input )?length"  # OpenRouter; SGLang
    r"|reduce the length of the messages"  # Groq, Cerebras
    r"|`max_new_tokens` must be <= \d+\. Given"  # text-generation-inference, Together
    r"|`inputs` tokens \+ `max_new_tokens` must be <= \d"  # Together, HTTP 403, without what was given (_TOGETHER)
    r"|context length of only|tokens to keep from the initial prompt|trying to keep the first \d+ tokens"  # LM Studio
    r"|prompt too long; exceeded|input length exceeds the context"  # Ollama
    r"|exceed context window of"  # llama-cpp-python
    r"|exceeded model token limit"  # Moonshot
    r"|prompt token count of \d+ exceeds",  # GitHub Copilot
    re.IGNORECASE,
)
_TOGETHER = re.compile(r"`inputs` tokens \+ `max_new_tokens` must be <= \d", re.IGNORECASE)
_PER_MINUTE = re.compile(rf"request too large for .{{0,300}}? limit {_N}, requested {_N}", re.IGNORECASE)
"""Groq (413) and OpenAI (429): one request of more tokens than the account may send in a minute. Waiting does not help."""

_WINDOW = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bn_ctx[^\w-]{{1,8}}{_N}",  # llama.cpp's field, in LiteLLM's words too (captured); LM Studio
        rf"available context size \({_N}",  # llama.cpp (captured)
        rf"maximum (?:context|prompt|model|allowed|allowed input) length(?: is| of)?\W{{1,3}}{_N}",
        rf"context length(?: is| of)?(?: only)?\W{{1,3}}{_N}",  # vLLM, SGLang, LM Studio
        rf"max_model_len\W{{1,2}}{_N}",  # vLLM (captured)
        rf"configured limit of {_N} tokens",  # OpenAI, GPT-5
        rf"tokens > {_N} maximum",  # Anthropic
        rf"context limit: [\d,]+ \+ [\d,]+ > {_N}",  # Anthropic
        rf"maximum number of tokens allowed \(?{_N}",  # Gemini
        rf"model with {_N} maximum context length",  # Mistral
        rf"`max_new_tokens` must be <= {_N}",  # text-generation-inference
        rf"current length is [\d,]+ while limit is {_N}",  # Cerebras
        rf"context window of {_N}",  # llama-cpp-python
        rf"model token limit: {_N}",  # Moonshot
        rf"prompt token count of [\d,]+ exceeds the limit of {_N}",  # GitHub Copilot
        rf"request too large for .{{0,300}}? limit {_N}, requested",  # Groq, OpenAI: of a minute
    )
]
_PROMPT = [  # the groups of one pattern are parts of the prompt
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bn_prompt_tokens[^\w-]{{1,8}}{_N}",  # llama.cpp's field (captured)
        rf"request \({_N} tokens\) exceeds",  # llama.cpp (captured)
        rf"(?:at least|passed|request has) {_N} input tokens",  # vLLM (captured); it stops counting above the window
        rf"messages resulted in {_N} tokens",  # OpenAI
        rf"\({_N} in (?:the messages|your prompt)(?:, {_N} in the functions)?",  # OpenAI, DeepSeek, vLLM
        rf"{_N} of \w+ input(?:, {_N} of \w+ input)?(?:, {_N} of \w+ input)?",  # OpenRouter
        rf"{_N} tokens from the input messages",  # SGLang
        rf"prompt is too long: {_N}",  # Anthropic
        rf"context limit: {_N} \+",  # Anthropic
        rf"input token count \(?{_N}",  # Gemini
        rf"prompt contains {_N} tokens",  # Mistral
        rf"request contains {_N} tokens",  # xAI
        rf"input (?:length )?\(?{_N}(?: tokens)?\)? (?:is longer|exceeds)",  # SGLang, Together; OpenRouter
        rf"prompt \(length {_N}\)",  # vLLM with images
        rf"keep the first {_N} tokens",  # LM Studio
        rf"\bn_keep\W{{1,3}}{_N}",  # LM Studio
        rf"given: {_N} `inputs` tokens",  # text-generation-inference
        rf"\(requested: {_N}\)",  # Moonshot
        rf"prompt token count of {_N}",  # GitHub Copilot
    )
]
_ANSWER_COUNTS = re.compile(r"completion|output|max_(new_|completion_)?tokens", re.IGNORECASE)

_TOO_MANY_BYTES = (
    "The request has too many bytes for the server or for a proxy in front of it: send fewer or smaller attachments, shorten the "
    "conversation, or raise the limit there (nginx: client_max_body_size)."
)
_ANSWER_TOO_LONG = "The prompt may fit, but not together with `max_tokens`: lower that, or serve the model with a larger context."
_TOO_MANY_A_MINUTE = (
    "The account may not send that many tokens in a minute, and `max_tokens` counts: shorten the conversation, lower `max_tokens`, "
    "or raise the limit with your provider."
)


def server_words(value: Any) -> str:
    """What an error says in the server's own words, from its decoded JSON: messages, types and codes, and the sizes of llama.cpp.

    Nothing else: `input`, `ctx` and the like hold parts of the request, so the user's words.
    """
    return "\n".join(_words(value, _DEPTH))[:_LOOKED_AT]


def words_of_body(body: str) -> str:
    """The same from a body: of JSON its words, of plain text the beginning, of a web page nothing."""
    try:
        return server_words(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        body = body.lstrip()
        return "" if body.startswith("<") else _QUOTED.sub("", body[:_BEGINNING])


def _words(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield _QUOTED.sub("", value[:_LOOKED_AT])
        return
    if depth == 0:
        return
    for each in array(value)[:20]:
        yield from _words(object_(each), depth - 1)
    fields = object_(value)
    for name in _HOLDERS:
        yield from _words(fields.get(name), depth - 1)
    if raw := string(object_(fields.get("metadata")).get("raw")):  # OpenRouter: what the provider behind it said (documented)
        yield words_of_body(raw)
    for name in ("msg", "type", "code"):
        if text := string(fields.get(name)):
            yield _QUOTED.sub("", text[:_LOOKED_AT])
    for name in ("n_ctx", "n_prompt_tokens"):
        if type(number := fields.get(name)) in (int, str):
            yield f"{name}: {str(number)[:20]}"


def is_overflow(status: int, said: str) -> bool:
    """The server's words say that the request is too large for the model, or larger than waiting could help."""
    if status in (413, 429) and (match := _PER_MINUTE.search(said)):
        limit, requested = (_number(each) or 0 for each in match.groups())
        return requested > limit > 0
    if status in (401, 403, 404):  # about the key or the name, but for one
        return status == 403 and _TOGETHER.search(said) is not None
    return status <= 500 and status != 429 and _OVERFLOW.search(said) is not None


def made(
    kind: type[ModelError],
    message: str,
    *,
    said: str,
    hint: str = "",
    status: int | None = None,
    retry_after_s: float | None = None,
    server_said: str | None = None,
) -> ModelError:
    """The error of that kind; a `ContextOverflow` has the sizes that the server named.

    Args:
        said: The server's words to read them from (`server_words`).
        hint: Other than the kind's own.
    """
    if kind is not ContextOverflow:
        return kind(message, hint=hint, status=status, retry_after_s=retry_after_s, server_said=server_said)
    window, prompt = _sizes(said)
    if _PER_MINUTE.search(said):
        hint = _TOO_MANY_A_MINUTE
    elif "max_model_len" in said or (window is not None and prompt is not None and prompt <= window):
        hint = _ANSWER_TOO_LONG
    elif status == 413 and window is None:
        hint = _TOO_MANY_BYTES
    return ContextOverflow(
        message,
        hint=hint,
        status=status,
        retry_after_s=retry_after_s,
        server_said=server_said,
        window_tokens=window,
        prompt_tokens=prompt,
    )


def _sizes(said: str) -> tuple[int | None, int | None]:
    """Tokens of the window and of the prompt, as far as they are named and make sense together."""
    window = next((_sum(match) for pattern in _WINDOW if (match := pattern.search(said))), None)
    prompt = next((_sum(match) for pattern in _PROMPT if (match := pattern.search(said))), None)
    if window is not None and prompt is not None and prompt <= window and not _ANSWER_COUNTS.search(said):
        return None, None  # that is no overflow: at least one of them is something else
    return window, prompt


def _sum(match: re.Match[str]) -> int | None:
    numbers = [_number(each) for each in match.groups() if each is not None]
    known = [each for each in numbers if each is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def _number(digits: str) -> int | None:
    number = int(digits.replace(",", ""))
    return number if 0 < number <= _MAX_TOKENS else None
