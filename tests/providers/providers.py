"""Every provider and server that can be named, and what its documentation says that it sends.

Nothing here was recorded. Fields, reasons, statuses and the order of chunks are written from the pages named beside each row and from
docs/protocols, all read by 2026-11-22; that a server sends calls whole or in pieces is played both ways, and not claimed of anyone.
Sentences inside of errors are ours where treadle does not look at them, and quoted where it does. What was recorded of real servers
is in tests/captures and tested in tests/conformance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.harness import data_line
from tests.providers.wires import Anthropic, Chat, ChatServer, Gemini, Ollama, Responses, Wire
from tests.wire import test_anthropic_decode as anthropic
from tests.wire import test_responses_decode as responses
from treadle.errors import (
    AuthenticationFailed,
    ContentRefused,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    ServerError,
    Unsupported,
)
from treadle.values.request import Finish, SchemaSupport
from treadle.values.state import StopReason
from treadle.values.usage import Usage

__all__ = ["NO_IMAGES", "PROVIDERS", "Answer", "Provider", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error, and what it has to be taken for. `body` is JSON, or bytes as they are."""

    status: int
    body: Any
    kind: type[ModelError]
    headers: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """A reason to stop, and what it has to come to: the turn's finish and the run's end, or an error."""

    said: str
    finish: Finish | None
    outcome: StopReason | type[ModelError]
    text: str = "Snow"


@dataclass(frozen=True)
class Provider:
    """One row of the table.

    Attributes:
        name: In ids of tests, and in links.
        model: How a user names it; `URL` stands for an address.
        schemas: With what it is sent a schema for the answer.
        counted: Its counts of tokens, each as it writes them, and what they are.
        reasons: Why a turn without calls stops.
        refusals: Answers with another status than 200.
        broken: What comes inside a stream that fails, and the error it is.
        path: What stands before the format's path.
        pictures: It takes images.
    """

    name: str
    title: str
    model: str
    wire: Wire
    reasons: tuple[Answer, ...]
    refusals: tuple[Refusal, ...]
    counted: tuple[tuple[dict[str, Any], Usage], ...]
    schemas: SchemaSupport = "alone"
    broken: tuple[tuple[bytes, type[ModelError]], ...] = ()
    path: str = "/v1"
    key_header: str | None = None
    pictures: bool = True


END, LENGTH = Answer("stop", "end", "end"), Answer("length", "length", "output_limit")
FILTERED = Answer("content_filter", "refused", "refused")
_COUNTED = Usage(input_tokens=100, output_tokens=7, cached_input_tokens=64)
_UNCACHED = Usage(input_tokens=100, output_tokens=7)
_CHAT = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
_REASONED = Usage(input_tokens=100, output_tokens=7, cached_input_tokens=64, reasoning_tokens=3)


def said(message: str, type: str | None = "invalid_request_error", code: Any = None, **more: Any) -> dict[str, Any]:
    """An error in OpenAI's envelope."""
    return {"error": {"message": message, "type": type, "param": None, "code": code, **more}}


def wait(seconds: str) -> tuple[tuple[str, str], ...]:
    return (("retry-after", seconds),)


# OpenAI: developers.openai.com error codes guide, and the errors of chat.md.
OPENAI_REFUSALS = (
    Refusal(400, said("This model's maximum context length is 128000 tokens.", code="context_length_exceeded"), ContextOverflow),
    Refusal(400, said("Your request was rejected by our safety system.", code="content_policy_violation"), ContentRefused),
    Refusal(400, said("Unknown parameter: 'x'.", code="unknown_parameter"), InvalidRequest),
    Refusal(401, said("Incorrect API key provided.", code="invalid_api_key"), AuthenticationFailed),
    Refusal(403, said("Country, region, or territory not supported.", code="unsupported_country_region_territory"), AuthenticationFailed),
    Refusal(404, said("The model `gpt-99` does not exist.", code="model_not_found"), ModelNotFound),
    Refusal(429, said("Rate limit reached.", "tokens", "rate_limit_exceeded"), RateLimited, wait("7"), 7.0),
    Refusal(429, said("Rate limit reached.", "requests", "rate_limit_exceeded"), RateLimited, (("retry-after-ms", "250"),), 0.25),
    Refusal(429, said("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"), QuotaExceeded),
    Refusal(500, said("The server had an error.", "server_error"), ServerError),
    Refusal(503, said("The engine is currently overloaded.", "server_error"), Overloaded, wait("1"), 1.0),
)  # fmt: skip
RESPONSES_REASONS = (
    Answer("completed", "end", "end"),
    Answer("max_output_tokens", "length", "output_limit"),
    FILTERED,
)
RESPONSES_COUNTED = (
    {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 20},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 107,
    },
    Usage(input_tokens=100, output_tokens=7, cached_input_tokens=64, cache_creation_tokens=20, reasoning_tokens=3),
)
OPENAI_COUNTED = (
    {**_CHAT, "prompt_tokens_details": {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 3}},
    _REASONED,
)

# The statuses of servers of which nothing more is known: RFC 9110 and 6585, and chat.md.
ANY_REFUSALS = (
    Refusal(400, said("bad request"), InvalidRequest),
    Refusal(400, said("This model's maximum context length is 4096 tokens."), ContextOverflow),
    Refusal(400, said("messages: 'Incorrect API key provided' is too short"), InvalidRequest),  # the request's own words
    Refusal(401, {"detail": "Unauthorized"}, AuthenticationFailed),
    Refusal(402, said("Payment Required", limit_source="openrouter_in_flight_budget"), QuotaExceeded, wait("3"), 3.0),
    Refusal(403, b"Forbidden", AuthenticationFailed),
    Refusal(403, said("no", reasons=["violence"]), AuthenticationFailed),
    Refusal(404, {"detail": "Not Found"}, ModelNotFound),
    Refusal(408, b"", ServerError),
    Refusal(413, b"<html>too large</html>", ContextOverflow),
    Refusal(422, {"detail": [{"loc": ["body", "x"], "msg": "extra fields not permitted"}]}, InvalidRequest),
    Refusal(429, b"slow down", RateLimited, wait("3"), 3.0),
    Refusal(498, b"Invalid token", InvalidRequest),
    Refusal(500, b"Internal Server Error", ServerError),
    Refusal(502, b"<html>bad gateway</html>", Overloaded),
    Refusal(503, b"", Overloaded, wait("2"), 2.0),
    Refusal(504, b"", Overloaded),
)


def anthropic_said(type: str, message: str = "no", **details: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type, "message": message, **details}, "request_id": "req_1"}


def gemini_said(code: int, status: str, message: str = "no", *details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


_RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}
_PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
}


NO_IMAGES = "Failed to deserialize the JSON body into the target type: messages[1]: unknown variant `image_url`, expected `text`"
"""DeepSeek: nesquena/hermes-webui#2297."""


def openrouter_said(code: int, message: str = "no", **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "metadata": metadata}}


_OPENROUTER_BROKEN = {
    "id": "gen-1",
    "object": "chat.completion.chunk",
    "provider": "X",
    "error": {"code": 502, "message": "Provider disconnected unexpectedly"},
    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
}

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            name="openai",
            title="OpenAI (Responses)",
            model="openai/gpt-5.2",
            wire=Responses(),
            schemas="with_tools",
            reasons=RESPONSES_REASONS,
            refusals=OPENAI_REFUSALS,
            counted=(RESPONSES_COUNTED,),
            broken=(  # the official SDK's types
                (responses.event("error", code="server_error", message="no", param=None), ServerError),
                (
                    responses.event(
                        "response.failed",
                        response={"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "no"}},
                    ),
                    RateLimited,
                ),
            ),
        ),
        Provider(
            name="openai-chat",
            title="OpenAI (Chat Completions)",
            model="chat+openai/gpt-4o",
            wire=Chat(
                ChatServer(
                    thinking=None,
                    thinking_back=None,
                    strict=True,
                    beside=({"service_tier": "default", "system_fingerprint": "fp_1", "obfuscation": "x9"}, {"logprobs": None}),
                )
            ),
            schemas="with_tools",
            reasons=(END, LENGTH, FILTERED),
            refusals=OPENAI_REFUSALS,
            counted=(OPENAI_COUNTED,),
        ),
        Provider(
            name="any-chat",
            title="any Chat Completions server",
            model="URL#m",
            wire=Chat(),
            reasons=(END, LENGTH, FILTERED, Answer("eos_token", "end", "end"), Answer("who_knows", "unknown", "end")),
            refusals=ANY_REFUSALS,
            counted=(OPENAI_COUNTED, ({**_CHAT, "cached_tokens": 64}, _COUNTED), (_CHAT, _UNCACHED)),
            broken=((data_line(said("the backend died", "server_error", 500)), ServerError),),
        ),
        Provider(  # docs/protocols/anthropic.md has the page of each
            name="anthropic",
            title="Anthropic",
            model="anthropic/claude-opus-4-6",
            wire=Anthropic(),
            schemas="with_tools",
            reasons=(
                Answer("end_turn", "end", "end"),
                Answer("stop_sequence", "end", "end"),
                Answer("max_tokens", "length", "output_limit"),
                Answer("model_context_window_exceeded", "length", "output_limit"),
                Answer("refusal", "refused", "refused"),
                Answer("pause_turn", "pause", "max_turns"),  # the model is to go on; the test allows one turn
            ),
            refusals=(
                Refusal(400, anthropic_said("invalid_request_error"), InvalidRequest),
                Refusal(
                    400, anthropic_said("invalid_request_error", "prompt is too long: 1 tokens > 0 maximum"), ContextOverflow
                ),
                Refusal(400, anthropic_said("invalid_request_error", "Your credit balance is too low"), QuotaExceeded),
                Refusal(401, anthropic_said("authentication_error"), AuthenticationFailed),
                Refusal(402, anthropic_said("billing_error"), QuotaExceeded),
                Refusal(403, anthropic_said("permission_error"), AuthenticationFailed),
                Refusal(404, anthropic_said("not_found_error"), ModelNotFound),
                Refusal(413, anthropic_said("request_too_large"), ContextOverflow),
                Refusal(429, anthropic_said("rate_limit_error"), RateLimited, wait("12"), 12.0),
                Refusal(
                    429, anthropic_said("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), QuotaExceeded
                ),
                Refusal(500, anthropic_said("api_error"), ServerError),
                Refusal(504, anthropic_said("timeout_error"), Overloaded),
                Refusal(529, anthropic_said("overloaded_error"), Overloaded),
            ),
            counted=(
                (
                    {
                        "input_tokens": 16,
                        "cache_read_input_tokens": 64,
                        "cache_creation_input_tokens": 20,
                        "output_tokens": 7,
                    },
                    Usage(input_tokens=100, output_tokens=7, cached_input_tokens=64, cache_creation_tokens=20),
                ),
            ),
            broken=(
                (anthropic.event("error", error={"type": "overloaded_error", "message": "Overloaded"}), Overloaded),
                (anthropic.event("error", error={"type": "rate_limit_error", "message": "no"}), RateLimited),
                (anthropic.event("error", error={"type": "api_error", "message": "no"}), ServerError),
            ),
        ),
        Provider(  # ai.google.dev/api/generate-content and /gemini-api/docs/api-errors
            name="gemini",
            title="Gemini",
            model="gemini/gemini-3-flash",
            wire=Gemini(),
            schemas="with_tools",
            reasons=(
                Answer("STOP", "end", "end"),
                Answer("MAX_TOKENS", "length", "output_limit"),
                *(
                    Answer(reason, "refused", "refused")
                    for reason in ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
                ),
                Answer("OTHER", "unknown", "end"),
                Answer("MALFORMED_FUNCTION_CALL", None, ServerError, text=""),
                Answer("UNEXPECTED_TOOL_CALL", None, ServerError, text=""),
            ),
            refusals=(
                Refusal(400, gemini_said(400, "INVALID_ARGUMENT"), InvalidRequest),
                Refusal(400, gemini_said(400, "INVALID_ARGUMENT", "API key not valid."), AuthenticationFailed),
                Refusal(
                    400,
                    gemini_said(
                        400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8)."
                    ),
                    ContextOverflow,
                ),
                Refusal(400, gemini_said(400, "FAILED_PRECONDITION"), InvalidRequest),
                Refusal(403, gemini_said(403, "PERMISSION_DENIED"), AuthenticationFailed),
                Refusal(404, gemini_said(404, "NOT_FOUND"), ModelNotFound),
                Refusal(402, gemini_said(402, "RESOURCE_EXHAUSTED"), QuotaExceeded),
                Refusal(429, gemini_said(429, "RESOURCE_EXHAUSTED", "no", _RETRY_INFO), RateLimited, (), 7.5),
                Refusal(429, gemini_said(429, "RESOURCE_EXHAUSTED", "no", _PER_DAY), QuotaExceeded),
                Refusal(500, gemini_said(500, "INTERNAL"), ServerError),
                Refusal(503, gemini_said(503, "UNAVAILABLE"), Overloaded),
                Refusal(504, gemini_said(504, "DEADLINE_EXCEEDED"), Overloaded),
            ),
            counted=(
                (
                    {
                        "promptTokenCount": 100,
                        "cachedContentTokenCount": 64,
                        "candidatesTokenCount": 4,
                        "thoughtsTokenCount": 3,
                        "totalTokenCount": 107,
                    },
                    _REASONED,
                ),
            ),
            broken=((data_line(gemini_said(503, "UNAVAILABLE")), Overloaded),),
        ),
        Provider(  # docs.ollama.com/api/chat and /api/errors
            name="ollama",
            title="Ollama (its own format)",
            model="ollama+ollama/qwen3:8b",
            wire=Ollama(),
            reasons=(END, LENGTH, Answer("unload", "unknown", "end")),
            refusals=(
                Refusal(400, {"error": "invalid character"}, InvalidRequest),
                Refusal(400, {"error": "qwen3:8b does not support tools"}, Unsupported),
                Refusal(404, {"error": "model 'qwen3:8b' not found"}, ModelNotFound),
                Refusal(429, {"error": "too many requests"}, RateLimited),
                Refusal(500, {"error": "the model failed to generate a response"}, ServerError),
                Refusal(500, {"error": "model requires more system memory (9 GiB) than is available (1 GiB)"}, Unsupported),
                Refusal(502, {"error": "the cloud model cannot be reached"}, Overloaded),
            ),
            counted=(({"prompt_eval_count": 100, "eval_count": 7}, _UNCACHED),),
            broken=((b'{"error":"an error was encountered while running the model"}\n', ServerError),),
            path="",
        ),
        Provider(  # docs.ollama.com/api/openai-compatibility; the indices are reported (chat.md)
            name="ollama-chat",
            title="Ollama (compatible)",
            model="chat+ollama/qwen3:8b",
            wire=Chat(
                ChatServer(
                    thinking="reasoning",
                    thinking_back="reasoning",
                    whole_calls=True,
                    one_index=True,
                    beside=({"system_fingerprint": "fp_ollama"}, {}),
                )
            ),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(400, said("does not support tools", "api_error"), Unsupported),
                Refusal(404, said("model 'qwen3:8b' not found", "not_found_error"), ModelNotFound),
                Refusal(429, said("too many requests", "rate_limit_error"), RateLimited),
                Refusal(500, said("the model failed to generate a response", "api_error"), ServerError),
            ),
            counted=((_CHAT, _UNCACHED),),
            broken=((data_line(said("an error was encountered while running the model", "api_error")), ServerError),),
        ),
        Provider(  # after the captures
            name="llamacpp",
            title="llama.cpp",
            model="llamacpp/m",
            wire=Chat(ChatServer(beside=({"system_fingerprint": "b1-x"}, {}))),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(
                    400,
                    {
                        "error": {
                            "code": 400,
                            "message": "the request exceeds the available context size",
                            "type": "exceed_context_size_error",
                            "n_prompt_tokens": 9,
                            "n_ctx": 8,
                        }
                    },
                    ContextOverflow,
                ),
                Refusal(400, said("'messages' is required", code=400), InvalidRequest),
                Refusal(401, said("Invalid API Key", "authentication_error", 401), AuthenticationFailed),
                Refusal(404, said("File Not Found", "not_found_error", 404), ModelNotFound),
                Refusal(
                    500, said("image input is not supported - hint: you may need an mmproj", "server_error", 500), Unsupported
                ),
                Refusal(500, said("Context size has been exceeded.", "server_error", 500), Overloaded),
                Refusal(501, said("This feature is not supported", "not_supported_error", 501), Unsupported),
                Refusal(503, said("Loading model", "unavailable_error", 503), Overloaded),
            ),
            counted=(({**_CHAT, "prompt_tokens_details": {"cached_tokens": 64}}, _COUNTED),),
            broken=((data_line(said("Context size has been exceeded.", "server_error", 500)), Overloaded),),
        ),
        Provider(  # after the captures
            name="vllm",
            title="vLLM",
            model="vllm/m",
            wire=Chat(
                ChatServer(thinking="reasoning", thinking_back="reasoning", beside=({}, {"logprobs": None, "token_ids": None}))
            ),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(
                    400,
                    said("This model's maximum context length is 8 tokens.", "BadRequestError", 400, param="input_tokens"),
                    ContextOverflow,
                ),
                Refusal(400, said("m is not a multimodal model", "BadRequestError", 400), Unsupported),
                Refusal(400, said("temperature must be non-negative", "BadRequestError", 400), InvalidRequest),
                Refusal(401, {"error": "Unauthorized"}, AuthenticationFailed),
                Refusal(404, said("The model `m` does not exist.", "NotFoundError", 404), ModelNotFound),
                Refusal(500, said("EngineCore encountered an issue.", "InternalServerError", 500), ServerError),
            ),
            counted=(({**_CHAT, "prompt_tokens_details": {"cached_tokens": 64}}, _COUNTED),),
            broken=((data_line(said("EngineCore died", "InternalServerError", 500)), ServerError),),
        ),
        Provider(  # lmstudio.ai/docs/developer/openai-compat; wordings of errors are reported (chat.md)
            name="lmstudio",
            title="LM Studio",
            model="lmstudio/qwen3-8b",
            wire=Chat(ChatServer(beside=({"system_fingerprint": "qwen3-8b", "stats": {}}, {"logprobs": None}))),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(400, {"error": "trying to keep the first 9 tokens when context the overflows"}, ContextOverflow),
                Refusal(400, {"error": "Context size has been exceeded."}, ContextOverflow),
                Refusal(401, said("Invalid API token", code="invalid_api_key"), AuthenticationFailed),
                Refusal(500, {"error": "The model has crashed without additional information."}, ServerError),
            ),
            counted=(
                (
                    {**_CHAT, "completion_tokens_details": {"reasoning_tokens": 0}},
                    Usage(input_tokens=100, output_tokens=7, reasoning_tokens=0),
                ),
            ),
            broken=((b'event: error\ndata: {"error":{"message":"The model has crashed"}}\n\n', ServerError),),
        ),
        Provider(  # openrouter.ai/docs: api/reference/streaming, errors-and-debugging, use-cases/usage-accounting
            name="openrouter",
            title="OpenRouter",
            model="openrouter/anthropic/claude-x",
            wire=Chat(
                ChatServer(
                    thinking="reasoning",
                    thinking_back="reasoning",
                    first=(b": OPENROUTER PROCESSING\n\n", b": OPENROUTER PROCESSING\n\n"),
                    beside=({"provider": "X"}, {"native_finish_reason": None, "logprobs": None}),
                )
            ),
            reasons=(END, LENGTH, FILTERED, Answer("error", None, ServerError)),
            refusals=(
                Refusal(400, openrouter_said(400), InvalidRequest),
                Refusal(401, openrouter_said(401), AuthenticationFailed),
                Refusal(402, openrouter_said(402), QuotaExceeded),
                Refusal(402, openrouter_said(402, limit_source="openrouter_credits"), QuotaExceeded),
                Refusal(402, openrouter_said(402, limit_source="openrouter_in_flight_budget"), RateLimited, wait("2"), 2.0),
                Refusal(403, openrouter_said(403), AuthenticationFailed),
                Refusal(403, openrouter_said(403, reasons=["violence"], flagged_input="..."), ContentRefused),
                Refusal(403, openrouter_said(403, limit_source="openrouter_key_limit"), QuotaExceeded),
                Refusal(408, openrouter_said(408), ServerError),
                Refusal(429, openrouter_said(429), RateLimited, wait("4"), 4.0),
                Refusal(502, openrouter_said(502), Overloaded),
                Refusal(503, openrouter_said(503), Overloaded, wait("6"), 6.0),
            ),
            counted=(
                (
                    {
                        **_CHAT,
                        "cost": 0.95,
                        "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 20, "audio_tokens": 0},
                        "completion_tokens_details": {"reasoning_tokens": 3},
                    },
                    Usage(
                        input_tokens=100, output_tokens=7, cached_input_tokens=64, cache_creation_tokens=20, reasoning_tokens=3
                    ),
                ),
            ),
            broken=((data_line(_OPENROUTER_BROKEN), Overloaded),),
        ),
        Provider(  # api-docs.deepseek.com: create-chat-completion, guides/thinking_mode, quick_start/error_codes
            name="deepseek",
            title="DeepSeek",
            model="deepseek/deepseek-v4-pro",
            wire=Chat(
                ChatServer(
                    thinking_back="reasoning_content!",
                    usage_with_reason=True,
                    beside=({"system_fingerprint": "fp_1"}, {"logprobs": None}),
                    ids=("call_00_a", "call_01_b"),
                )
            ),
            schemas="none",
            reasons=(END, LENGTH, FILTERED, Answer("insufficient_system_resource", None, Overloaded)),
            refusals=(
                Refusal(400, said("This model's maximum context length is 131072 tokens."), ContextOverflow),
                Refusal(400, said("Invalid Format"), InvalidRequest),
                Refusal(400, said(NO_IMAGES, code="invalid_request_error"), Unsupported),
                Refusal(401, said("Authentication Fails", "authentication_error"), AuthenticationFailed),
                Refusal(402, said("Insufficient Balance", "unknown_error"), QuotaExceeded),
                Refusal(422, said("Invalid Parameters"), InvalidRequest),
                Refusal(429, said("Rate Limit Reached", "rate_limit_error"), RateLimited),
                Refusal(500, said("Server Error", "server_error"), ServerError),
                Refusal(503, said("Server Overloaded", "service_unavailable_error"), Overloaded),
            ),
            counted=(
                (
                    {
                        **_CHAT,
                        "prompt_cache_hit_tokens": 64,
                        "prompt_cache_miss_tokens": 36,
                        "completion_tokens_details": {"reasoning_tokens": 3},
                    },
                    _REASONED,
                ),
            ),
            pictures=False,
        ),
        Provider(  # console.groq.com/docs: errors, prompt-caching, reasoning
            name="groq",
            title="Groq",
            model="groq/openai/gpt-oss-20b",
            wire=Chat(
                ChatServer(
                    thinking="reasoning",
                    thinking_back=None,
                    whole_calls=True,
                    beside=({"system_fingerprint": "fp_1", "x_groq": {"id": "req_1"}}, {"logprobs": None}),
                )
            ),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(400, said("bad"), InvalidRequest),
                Refusal(401, said("Invalid API Key", code="invalid_api_key"), AuthenticationFailed),
                Refusal(403, said("Forbidden", "permissions_error"), AuthenticationFailed),
                Refusal(404, said("no such model", code="model_not_found"), ModelNotFound),
                Refusal(413, said("Request Entity Too Large"), ContextOverflow),
                Refusal(422, said("semantic error"), InvalidRequest),
                Refusal(429, said("Rate limit reached", "tokens", "rate_limit_exceeded"), RateLimited, wait("2"), 2.0),
                Refusal(498, said("Flex tier capacity exceeded", "capacity_exceeded", "capacity_exceeded"), Overloaded),
                Refusal(500, said("Internal Server Error", "internal_server_error"), ServerError),
                Refusal(502, b"bad gateway", Overloaded),
                Refusal(503, said("Service Unavailable", "service_unavailable"), Overloaded),
            ),
            counted=(
                ({**_CHAT, "queue_time": 0.01, "prompt_time": 0.02, "prompt_tokens_details": {"cached_tokens": 64}}, _COUNTED),
            ),
        ),
        Provider(  # docs.together.ai: reference/chat-completions, docs/error-codes, inference/chat/reasoning; the 403's words: chat.md
            name="together",
            title="Together",
            model="together/moonshotai/Kimi-K2.6",
            wire=Chat(
                ChatServer(
                    thinking="reasoning",
                    thinking_back="reasoning",
                    usage_with_reason=True,
                    beside=({}, {"text": "", "logprobs": None, "seed": 1}),
                )
            ),
            reasons=(END, Answer("eos", "end", "end"), LENGTH),
            refusals=(
                Refusal(400, said("Invalid Request"), InvalidRequest),
                Refusal(401, said("Invalid API key provided", code="invalid_api_key"), AuthenticationFailed),
                Refusal(402, said("Payment Required", "credit_limit"), QuotaExceeded),
                Refusal(403, said("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097"), ContextOverflow),
                Refusal(404, said("Unable to access model", code="model_not_available"), ModelNotFound),
                Refusal(429, said("Rate limit", "rate_limit"), RateLimited),
                Refusal(500, said("Server Error", "server_error"), ServerError),
                Refusal(503, said("Engine Overloaded", "service_unavailable"), Overloaded),
            ),
            counted=(
                ({**_CHAT, "cached_tokens": 64}, _COUNTED),
                ({**_CHAT, "prompt_tokens_details": {"cached_tokens": 64}}, _COUNTED),
            ),
        ),
        Provider(  # docs.mistral.ai: capabilities/reasoning, conversations/advanced/prompt-caching; the SDK's finish reasons
            name="mistral",
            title="Mistral",
            model="mistral/mistral-medium-latest",
            wire=Chat(
                ChatServer(
                    thinking="parts",
                    thinking_back=None,
                    whole_calls=True,
                    usage_with_reason=True,
                    beside=({"p": "abc"}, {}),
                    ids=("aB3xK9mP2", "cD4yL0nQ3"),
                )
            ),
            reasons=(END, LENGTH, Answer("model_length", "length", "output_limit"), Answer("error", None, ServerError)),
            refusals=(
                Refusal(
                    400, {"object": "error", "message": "bad", "type": "invalid_request_error", "code": "3051"}, InvalidRequest
                ),
                Refusal(401, {"detail": "Unauthorized"}, AuthenticationFailed),
                Refusal(402, {"detail": "Payment required"}, QuotaExceeded),
                Refusal(422, {"object": "error", "message": {"detail": []}, "type": "invalid_request_error"}, InvalidRequest),
                Refusal(
                    429,
                    {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"},
                    RateLimited,
                ),
                Refusal(500, {"object": "error", "message": "no", "type": "internal_server_error"}, ServerError),
                Refusal(503, {"object": "error", "message": "Service unavailable."}, Overloaded),
            ),
            counted=(({**_CHAT, "prompt_tokens_details": {"cached_tokens": 64}}, _COUNTED),),
        ),
        Provider(  # docs.x.ai/developers: debugging, advanced-api-usage/prompt-caching
            name="xai",
            title="xAI",
            model="xai/grok-4.5",
            wire=Chat(ChatServer(whole_calls=True, beside=({"system_fingerprint": "fp_1"}, {}))),
            reasons=(END, LENGTH),
            refusals=(
                Refusal(400, {"code": "Client specified an invalid argument", "error": "bad"}, InvalidRequest),
                Refusal(
                    400,
                    {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: x***x."},
                    AuthenticationFailed,
                ),
                Refusal(
                    400,
                    {"code": "Client specified an invalid argument", "error": "Incorrect%20API%20key%20provided:%20x***x."},
                    AuthenticationFailed,
                ),
                Refusal(401, {"code": "Unauthenticated", "error": "no credentials"}, AuthenticationFailed),
                Refusal(403, {"code": "Permission denied", "error": "blocked"}, AuthenticationFailed),
                Refusal(404, {"code": "Some requested entity was not found", "error": "no such model"}, ModelNotFound),
                Refusal(405, b"", Unsupported),
                Refusal(415, b"no content type", InvalidRequest),
                Refusal(422, b"Failed to deserialize the JSON body", InvalidRequest),
                Refusal(429, {"code": "Some resource has been exhausted", "error": "too many"}, RateLimited),
                Refusal(503, b"", Overloaded),
            ),
            counted=(
                (
                    {
                        **_CHAT,
                        "prompt_tokens_details": {"text_tokens": 100, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 64},
                        "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
                    },
                    _REASONED,
                ),
            ),
        ),
        Provider(  # learn.microsoft.com/azure/foundry/openai
            name="azure",
            title="Azure OpenAI",
            model="azure/gpt-5.4",
            wire=Responses(),
            schemas="with_tools",
            reasons=RESPONSES_REASONS,
            refusals=(
                Refusal(
                    400,
                    said(
                        "The response was filtered.", None, "content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}
                    ),
                    ContentRefused,
                ),
                Refusal(
                    401,
                    {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}},
                    AuthenticationFailed,
                ),
                Refusal(403, said("Public access is disabled.", None, "403"), AuthenticationFailed),
                Refusal(
                    404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}, ModelNotFound
                ),
                Refusal(
                    429,
                    {"error": {"code": "429", "message": "Requests have exceeded the rate limit."}},
                    RateLimited,
                    wait("9"),
                    9.0,
                ),
                Refusal(500, said("internal", "server_error", "500"), ServerError),
                Refusal(503, said("busy", "server_error", "503"), Overloaded),
            ),
            counted=(RESPONSES_COUNTED,),
            path="/openai/v1",
            key_header="api-key",
        ),
    )
}
