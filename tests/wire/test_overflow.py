"""A request that is too large: that it is recognised, and the sizes that the server named.

The captures are real; every other wording is from an issue that quotes it, named beside it (all read 2026-11-22).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from treadle.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    RateLimited,
    ServerError,
)
from treadle.values.request import ModelRequest
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.codec import Codec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec

CAPTURES = Path(__file__).parent.parent / "captures"
CODECS: dict[str, Codec] = {
    "chat": ChatCodec(),
    "responses": ResponsesCodec(),
    "anthropic": AnthropicCodec(),
    "gemini": GeminiCodec("m"),
    "ollama": OllamaCodec(),
}
PATHS = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/messages": "anthropic"}


def error_of(status: int, body: bytes, format: str = "chat") -> ModelError:
    return CODECS[format].error(status, {}, body, address="http://h/v1")


def overflow(error: ModelError) -> tuple[int | None, int | None]:
    assert type(error) is ContextOverflow
    assert error.hint and (error.server_said or "no words") not in str(error) + repr(error)
    return error.window_tokens, error.prompt_tokens


# Window and prompt. vLLM says "at least": it stops counting where the window ends.
CAPTURED = {
    "litellm--anthropic-overflow-stream": (2048, 8072),
    "litellm--context-overflow": (2048, 8008),
    "litellm--responses-overflow": (2048, 8072),
    "vllm--anthropic-overflow": (2048, 2049),
    "vllm--anthropic-overflow-stream": (2048, 2049),
    "vllm--context-overflow": (2048, 2049),
    "vllm--context-overflow-by-max-tokens": (2048, None),
    "vllm--context-overflow-stream": (2048, 2049),
    "vllm--responses-overflow": (2048, 2049),
    "xllamacpp--context-overflow": (2048, 10019),
    "xllamacpp--context-overflow-stream": (2048, 10019),
    "xllamacpp-trained--anthropic-overflow-stream": (2048, 8072),
    "xllamacpp-trained--context-overflow": (2048, 8008),
    "xllamacpp-trained--context-overflow-stream": (2048, 8008),
    "xllamacpp-trained--responses-overflow": (2048, 8072),
}


def test_every_captured_error_that_is_an_overflow_has_its_sizes() -> None:
    found: dict[str, tuple[int | None, int | None]] = {}
    for path in sorted(CAPTURES.glob("*.meta.json")):
        meta = json.loads(path.read_bytes())
        status, format = int(meta["status_line"].split()[1]), PATHS.get(meta["request"]["path"])
        if format is None or status == 200:
            continue
        case = path.name.removesuffix(".meta.json")
        error = error_of(status, next(CAPTURES.glob(f"{case}.body.*")).read_bytes(), format)
        if isinstance(error, ContextOverflow):
            found[case] = overflow(error)
    assert found == CAPTURED
    named = {path.name.partition(".")[0] for path in CAPTURES.glob("*overflow*.meta.json")}
    assert named - found.keys() == {"litellm--context-overflow-by-max-tokens"}, "LiteLLM lowered max_tokens and answered"


Row = tuple[int, str, str, int | None, int | None]
WORDINGS: dict[str, Row] = {
    "OpenAI, crewAIInc/crewAI-examples#121": (
        400,
        "chat",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 8227 tokens. Please reduce the "
        "length of the messages.",
        8192,
        8227,
    ),
    "OpenAI with functions, dissorial/Chainlit-OpenAI-Functions#1": (
        400,
        "chat",
        "This model's maximum context length is 4097 tokens. However, your messages resulted in 4238 tokens (4143 in the messages, "
        "95 in the functions). Please reduce the length of the messages or functions.",
        4097,
        4238,
    ),
    "OpenAI, the answer counts, Doriandarko/o1-engineer#15": (
        400,
        "chat",
        "This model's maximum context length is 128000 tokens. However, you requested 131447 tokens (71447 in the messages, 60000 in "
        "the completion). Please reduce the length of the messages or completion.",
        128000,
        71447,
    ),
    "OpenAI, as before with functions": (
        400,
        "chat",
        "This model's maximum context length is 4097 tokens. However, you requested 5120 tokens (1000 in the messages, 120 in the "
        "functions, 4000 in the completion).",
        4097,
        1120,
    ),
    "OpenAI, older, AstrBotDevs/AstrBot#1": (
        400,
        "chat",
        "This model's maximum context length is 4097 tokens, however you requested 4569 tokens (3545 in your prompt; 1024 for the "
        "completion). Please reduce your prompt; or completion length.",
        4097,
        3545,
    ),
    "OpenAI Responses, VectorlyApp/bluebox#66": (
        400,
        "responses",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        None,
        None,
    ),
    "OpenAI, of a minute, continuedev/continue#11717": (
        429,
        "chat",
        "Request too large for gpt-4.1-2025-04-14 (for limit gpt-4.1) in organization org-x on tokens per min (TPM): Limit 30000, "
        "Requested 37313. The input or output tokens must be reduced in order to run successfully.",
        30000,
        None,
    ),
    "Groq, of a minute, cottongeeks/podscript#20": (
        413,
        "chat",
        "Request too large for model `llama-3.3-70b-versatile` in organization `org_x` service tier `on_demand` on tokens per minute "
        "(TPM): Limit 6000, Requested 10338, please reduce your message size and try again.",
        6000,
        None,
    ),
    "OpenAI, GPT-5, community.openai.com/t/1344734": (
        400,
        "responses",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 297006 tokens. Please reduce the length "
        "of the messages.",
        272000,
        297006,
    ),
    "Groq, langchain-ai/langchain#37533": (400, "chat", "Please reduce the length of the messages or completion.", None, None),
    "DeepSeek, evalstate/fast-agent#621": (
        400,
        "chat",
        "This model's maximum context length is 131072 tokens. However, you requested 131134 tokens (122942 in the messages, 8192 in "
        "the completion). Please reduce the length of the messages or completion.",
        131072,
        122942,
    ),
    "xAI, cline/cline#3120": (
        400,
        "chat",
        "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
        131072,
        136973,
    ),
    "Mistral, earendil-works/pi overflow.ts": (
        400,
        "chat",
        "Prompt contains 300000 tokens, too large for model with 131072 maximum context length",
        131072,
        300000,
    ),
    "OpenRouter, OpenHands/OpenHands#9937": (
        400,
        "chat",
        "This endpoint's maximum context length is 131072 tokens. However, you requested about 138956 tokens (7884 of text input, "
        "131072 in the output). Please reduce the length of either one.",
        131072,
        7884,
    ),
    "OpenRouter, topoteretes/cognee#1061": (
        400,
        "chat",
        "This endpoint's maximum context length is 16384 tokens. However, you requested about 94307 tokens (94307 of text input).",
        16384,
        94307,
    ),
    "OpenRouter, with tools (its form of the same)": (
        400,
        "chat",
        "This endpoint's maximum context length is 16384 tokens. However, you requested about 20000 tokens (12000 of text input, 3000 "
        "of tool input, 5000 in the output).",
        16384,
        15000,
    ),
    "OpenRouter for Poolside, earendil-works/pi#4943": (
        400,
        "chat",
        "Input length 131393 exceeds the maximum allowed input length of 131040 tokens.",
        131040,
        131393,
    ),
    "Together, stanford-crfm/helm#2079": (
        400,
        "chat",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2019 `inputs` tokens and 30 "
        "`max_new_tokens`",
        2048,
        2019,
    ),
    "Together and SGLang, QwenLM/Qwen3#1321": (
        400,
        "chat",
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
        40960,
        61709,
    ),
    "SGLang, sgl-project/sglang#4048": (
        400,
        "chat",
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
        59862,
        160062,
    ),
    "OpenAI-compatible, earendil-works/pi#5677": (
        400,
        "chat",
        "Input length (265330) exceeds model's maximum context length (262144).",
        262144,
        265330,
    ),
    "vLLM, the answer counts, vllm-project/vllm#42474": (
        400,
        "chat",
        "This model's maximum context length is 128000 tokens. However, you requested 65535 output tokens and your prompt contains at "
        "least 62466 input tokens, for a total of at least 128001 tokens.",
        128000,
        62466,
    ),
    "vLLM, proxysoul/Empryo#52": (
        400,
        "chat",
        "You passed 202753 input tokens and requested 0 output tokens. However, the model's context length is only 202752 tokens, "
        "resulting in a maximum input length of 202752 tokens.",
        202752,
        202753,
    ),
    "vLLM with images, Gabesarch/grounded-rl#16": (
        400,
        "chat",
        "The decoder prompt (length 10127) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller "
        "than the number of text tokens plus multimodal tokens.",
        8192,
        10127,
    ),
    "LM Studio, lmstudio-ai/lmstudio-bug-tracker#546": (
        400,
        "chat",
        "Trying to keep the first 111490 tokens when context the overflows. However, the model is loaded with context length of only "
        "32768 tokens, which is not enough.",
        32768,
        111490,
    ),
    "LM Studio, tinyhumansai/openhuman#3550": (
        400,
        "chat",
        "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 10247 >= n_ctx: 4096).",
        4096,
        10247,
    ),
    "Cerebras, cline/cline#5140": (
        400,
        "chat",
        "Please reduce the length of the messages or completion. Current length is 42328 while limit is 40000",
        40000,
        None,  # with or without the completion: it does not say
    ),
    "Moonshot, earendil-works/pi overflow.ts": (
        400,
        "chat",
        "Your request exceeded model token limit: 262144 (requested: 300000)",
        262144,
        300000,
    ),
    "GitHub Copilot, earendil-works/pi overflow.ts": (
        400,
        "chat",
        "prompt token count of 128393 exceeds the limit of 128000",
        128000,
        128393,
    ),
    "llama-cpp-python, abetlen/llama-cpp-python#120": (400, "chat", "Requested tokens exceed context window of 512", 512, None),
    "Anthropic, stackblitz/bolt.new#2449": (
        400,
        "anthropic",
        "prompt is too long: 202095 tokens > 200000 maximum",
        200000,
        202095,
    ),
    "Anthropic, the answer counts, docker/docker-agent#569": (
        400,
        "anthropic",
        "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease input length or `max_tokens` and try again",
        200000,
        178959,
    ),
    "Gemini, google-gemini/gemini-cli#4118": (
        400,
        "gemini",
        "The input token count (132478) exceeds the maximum number of tokens allowed (131072).",
        131072,
        132478,
    ),
    "Ollama, earendil-works/pi overflow.ts": (
        400,
        "ollama",
        "prompt too long; exceeded max context length by 4096 tokens",
        None,
        None,
    ),
    "Ollama, as in its runner": (400, "ollama", "the input length exceeds the context length", None, None),
}


def in_format(format: str, said: str) -> dict[str, Any]:
    if format == "anthropic":
        return {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    if format == "gemini":
        return {"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}
    if format == "ollama":
        return {"error": said}
    return {"error": {"message": said, "type": "invalid_request_error", "code": None}}


@pytest.mark.parametrize("name", WORDINGS)
class TestReportedWordings:
    def test_a_body(self, name: str) -> None:
        status, format, said, window, prompt = WORDINGS[name]
        body = json.dumps(in_format(format, said)).encode()
        assert overflow(error_of(status, body, format)) == (window, prompt)
        assert overflow(error_of(status, body.replace(b">", b"\\u003e"), format)) == (window, prompt), "as Go escapes it"

    @pytest.mark.parametrize("format", CODECS)
    def test_the_words_are_known_in_every_format(self, name: str, format: str) -> None:
        """A gateway passes on the words of whatever is behind it."""
        status, _, said, window, prompt = WORDINGS[name]
        assert overflow(error_of(status, json.dumps(in_format(format, said)).encode(), format)) == (window, prompt)

    def test_as_litellm_wraps_them(self, name: str) -> None:
        status, format, said, window, prompt = WORDINGS[name]
        wrapped = f"litellm.ContextWindowExceededError: OpenAIException - {json.dumps(in_format(format, said))}\nmodel=tiny."
        body = {"error": {"message": wrapped, "type": "invalid_request_error", "param": None, "code": str(status)}}
        assert overflow(error_of(status, json.dumps(body).encode())) == (window, prompt)

    def test_inside_a_stream_without_a_status(self, name: str) -> None:
        status, _, said, window, prompt = WORDINGS[name]
        if status != 400:
            return  # those of a minute need theirs
        decoder = ChatCodec().decoder(ModelRequest(messages=()))
        decoder.feed(b"event: error\ndata: %s\n\n" % json.dumps({"error": said}).encode())
        assert decoder.error is not None
        assert overflow(decoder.error) == (window, prompt)


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (
            429,
            "Rate limit reached for m on tokens per min (TPM): Limit 6000, Used 5034, Requested 1443. Try again in 4 s",
            RateLimited,
        ),
        (429, "Request too large for m (TPM): Limit 6000, Requested 1443", RateLimited),  # it would fit
        (429, "Too many tokens, please wait before trying again", RateLimited),  # Bedrock's throttling, jin-bo/agentao#88
        (400, "max_tokens is too large: 20480. This model supports at most 16384 completion tokens", InvalidRequest),
        (400, "max_tokens must be at least 1, got -5.", InvalidRequest),
        (500, "KV cache is full", ServerError),
    ],
)
def test_what_is_no_overflow(status: int, said: str, error: type[ModelError]) -> None:
    assert type(error_of(status, json.dumps({"error": {"message": said}}).encode())) is error


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_ctx": 2048, "n_prompt_tokens": 10019}, (2048, 10019)),
        ({"n_prompt_tokens": 10019, "n_ctx": 2048}, (2048, 10019)),
        ({"n_ctx": 0, "n_prompt_tokens": 10019}, (None, 10019)),
        ({"n_ctx": 2048, "n_prompt_tokens": 0}, (2048, None)),
        ({"n_ctx": 2048, "n_prompt_tokens": 100}, (None, None)),  # that would fit
        ({"n_ctx": -2048, "n_prompt_tokens": 99999999999999}, (None, None)),
        ({"n_ctx": "2048", "n_prompt_tokens": None}, (2048, None)),
        ({"n_ctx": {"a": 1}}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_numbers_that_make_no_sense_are_dropped(fields: dict[str, Any], expected: tuple[int | None, int | None]) -> None:
    body = {"error": {"code": 400, "message": "m", "type": "exceed_context_size_error", **fields}}
    assert overflow(error_of(400, json.dumps(body).encode())) == expected


def test_what_to_do_depends_on_what_is_too_large() -> None:
    def hint(status: int, said: str) -> str:
        return error_of(status, json.dumps({"error": {"message": said}}).encode()).hint

    assert "Shorten the conversation" in hint(400, "prompt is too long: 3 tokens > 2 maximum")
    assert "lower" in hint(400, "max_tokens=9 cannot be greater than max_model_len=8.")
    assert "lower" in hint(400, "`max_tokens` exceed context limit: 178959 + 64000 > 200000")
    assert "in a minute" in hint(413, "Request too large for m (TPM): Limit 6000, Requested 14810, please")


@pytest.mark.parametrize(
    "body",
    [
        b"<html><head><title>413 Request Entity Too Large</title></head><body><center>nginx/1.27.0</center></body></html>",
        b'{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}',  # Anthropic (documented)
        b"",
    ],
)
@pytest.mark.parametrize("format", CODECS)
def test_too_many_bytes_are_cured_alike_and_measured_in_no_tokens(body: bytes, format: str) -> None:
    error = error_of(413, body, format)
    assert overflow(error) == (None, None)
    assert "too many bytes" in error.hint


OVERFLOW = "This model's maximum context length is 4096 tokens"
USERS = [f"Why does vLLM say: {OVERFLOW}?", "credit balance is too low", "tiny is not a multimodal model", "API key not valid"]


@pytest.mark.parametrize("said", USERS)
@pytest.mark.parametrize("format", CODECS)
def test_the_users_own_words_decide_nothing(format: str, said: str) -> None:
    """Servers quote the request in what they say of it: FastAPI as `input`, others in the message, a filter on a page of its own."""
    wrong = {"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}
    message = {"role": "user", "content": said}
    bodies = [
        {"detail": [{**wrong, "input": message, "ctx": {"error": said}}]},
        {"object": "error", "message": {"detail": [{**wrong, "input": said}]}, "type": "invalid_request_error"},
        {"error": {"message": "bad request", "type": "invalid_request_error", "request": {"messages": [message]}}},
        {"error": {"message": f"messages.0.content: Input should be a valid list; got '{said}'"}},
        {"error": {"message": f"Invalid 'messages[0].content': '{said}' is not allowed"}},
        {"error": {"message": f"1 validation error:\n  {{'type': 'x', 'msg': 'Not permitted', 'input': {message}}}"}},
        {"error": {"message": f"Input should be a valid string [type=x, input_value={message}, input_type=dict]"}},
        {"error": {"message": "Request failed. " + "x" * 5_000 + said}},
    ]
    for status in (400, 422):
        for body in bodies:
            assert type(error_of(status, json.dumps(body).encode(), format)) is InvalidRequest, body
    assert type(error_of(400, f"<html>blocked: {said}</html>".encode(), format)) is InvalidRequest
    assert type(error_of(400, ("Bad request: " + "x" * 600 + said).encode(), format)) is InvalidRequest


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_status_that_is_about_something_else(status: int) -> None:
    error = error_of(status, json.dumps({"error": {"message": f"no: {OVERFLOW}"}}).encode())
    assert type(error) is (ModelNotFound if status == 404 else AuthenticationFailed)


def test_together_says_it_with_a_403() -> None:
    said = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048"
    assert overflow(error_of(403, json.dumps({"error": {"message": said}}).encode())) == (2048, None)


@pytest.mark.parametrize(
    "body",
    [
        {"detail": OVERFLOW},
        {"detail": [{"type": "value_error", "loc": ["body"], "msg": OVERFLOW, "input": {}}]},
        {"message": OVERFLOW},
        {"error": OVERFLOW},
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": json.dumps({"error": {"message": OVERFLOW}})},
            }
        },
        {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": OVERFLOW}}},
        [{"error": {"message": OVERFLOW, "code": 400}}],
    ],
)
def test_wherever_the_server_has_its_words(body: Any) -> None:
    assert overflow(error_of(400, json.dumps(body).encode())) == (4096, None)


def test_a_plain_text_says_it_at_its_beginning() -> None:
    assert overflow(error_of(400, OVERFLOW.encode())) == (4096, None)
