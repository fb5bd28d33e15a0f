"""Names of models: what each stands for, without any I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from treadle.drivers.catalog import PRESETS, addresses, driver_for, key_at, preset_at
from treadle.drivers.discovery import DiscoveredDriver
from treadle.drivers.http import HttpDriver
from treadle.errors import UsageError
from treadle.values.messages import UserMessage
from treadle.values.ports import Driver
from treadle.values.request import ModelRequest, Options
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.gemini import GeminiCodec
from treadle.wire.ollama import OllamaCodec
from treadle.wire.responses import ResponsesCodec


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in PRESETS.values():
        for name in (*preset.address_env, preset.key_env):
            if name:
                monkeypatch.delenv(name, raising=False)


def sent_key(driver: Driver) -> str | None:
    assert isinstance(driver, HttpDriver)
    return driver.headers(ModelRequest(messages=())).get("Authorization")


@pytest.mark.parametrize(
    ("text", "base_url", "name"),
    [
        ("ollama/qwen3:8b", "http://127.0.0.1:11434", "ollama/qwen3:8b"),
        ("ollama/hf.co/org/model:Q4_K_M", "http://127.0.0.1:11434", "ollama/hf.co/org/model:Q4_K_M"),
        ("chat+ollama/qwen3:8b", "http://127.0.0.1:11434/v1", "chat+ollama/qwen3:8b"),
        ("lmstudio/qwen/qwen3-4b", "http://127.0.0.1:1234/v1", "lmstudio/qwen/qwen3-4b"),
        ("vllm/Qwen/Qwen3-8B", "http://127.0.0.1:8000/v1", "vllm/Qwen/Qwen3-8B"),
        (" vllm/x ", "http://127.0.0.1:8000/v1", "vllm/x"),
        ("http://host:9/v1#a/b:c", "http://host:9/v1", "http://host:9/v1#a/b:c"),
        ("http://host:9#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("http://host:9/#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("http://host:9/v1/#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("http://host:9/v1/chat/completions#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("http://host:9/v1/chat/completions/#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("http://host:9/v1/models#m", "http://host:9/v1", "http://host:9/v1#m"),
        ("HTTPS://Host/openai/v1#m", "https://host/openai/v1", "https://host/openai/v1#m"),
        ("http://0.0.0.0:8000/v1#m", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1#m"),
        ("http://[::]:8000/v1#m", "http://[::1]:8000/v1", "http://[::1]:8000/v1#m"),
    ],
)
def test_a_model_with_its_server_is_a_driver_at_that_address(text: str, base_url: str, name: str) -> None:
    driver = driver_for(text)
    assert isinstance(driver, HttpDriver)
    assert (driver.base_url, driver.model) == (base_url, name)


@pytest.mark.parametrize("text", ["local", "ollama", "vllm", "http://host:9", "http://host:9/v1/", "llamacpp"])
def test_what_does_not_name_a_model_is_found_later_under_the_name_given(text: str) -> None:
    driver = driver_for(text)
    assert isinstance(driver, DiscoveredDriver)
    assert isinstance(driver, Driver)
    assert driver.model == text


def test_a_server_with_two_usual_ports_is_found_later() -> None:
    # llama.cpp's default moves from 8080 to 9931.
    assert addresses(PRESETS["llamacpp"]) == ("http://127.0.0.1:8080/v1", "http://127.0.0.1:9931/v1")
    driver = driver_for("llamacpp/models/tiny.gguf")
    assert isinstance(driver, DiscoveredDriver)
    assert driver.model == "llamacpp/models/tiny.gguf"


@pytest.mark.parametrize(
    ("text", "said", "hinted"),
    [
        ("qwen3:8b", "'qwen3:8b'", '"ollama/qwen3:8b"'),
        ("llama3.2", "'llama3.2'", '"ollama/llama3.2"'),
        ("olama/x", "'olama'", '"ollama/x"'),
        ("Ollama/x", "'Ollama'", '"ollama/x"'),
        ("lm-studio/a/b", "'lm-studio'", '"lmstudio/a/b"'),
        ("llama.cpp", "'llama.cpp'", '"llamacpp"'),
        ("locl", "'locl'", '"local"'),
        ("localhost:8080", "'localhost:8080'", '"http://localhost:8080"'),
        ("10.0.0.2:8000/v1", "'10.0.0.2:8000'", '"http://10.0.0.2:8000/v1"'),
        ("", "''", '"local"'),
        ("Qwen/Qwen3-8B", "'Qwen'", "ollama, lmstudio, vllm, llamacpp"),
        ("./tiny.gguf", "'./tiny.gguf'", "treadle run --model FILE"),
        ("MODELS/TINY.GGUF", "'MODELS/TINY.GGUF'", "with LlamaServer(FILE) as server: Agent(server.driver)"),
        ("http://", "'http://'", "http://host:port/v1"),
        ("http://host:port/v1#m", "'http://host:port/v1'", "http://host:port/v1"),
    ],
)
def test_a_name_that_cannot_be_understood_is_answered_with_the_nearest_that_can(text: str, said: str, hinted: str) -> None:
    with pytest.raises(UsageError) as caught:
        driver_for(text)
    assert said in caught.value.message
    assert hinted in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "http://me:CANARY@host/v1#m",
        "http://me:CANARY@host:99999/v1#m",
        "http://host/v1?key=CANARY",
        "http://host/v1 CANARY",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        driver_for(text)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "base_url"),
    [
        ("", "http://127.0.0.1:11434/v1"),
        ("box", "http://box:11434/v1"),
        ("box:1234", "http://box:1234/v1"),
        (":1234", "http://127.0.0.1:1234/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234/v1"),
        ("http://box", "http://box:80/v1"),
        ("https://box", "https://box:443/v1"),
        ("https://box/ollama/", "https://box:443/ollama/v1"),
        ("http://box:1234/v1", "http://box:1234/v1"),
        (' "box:1234" ', "http://box:1234/v1"),
        ("::1", "http://[::1]:11434/v1"),
        ("[::]:1234", "http://[::1]:1234/v1"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(monkeypatch: pytest.MonkeyPatch, value: str, base_url: str) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    assert addresses(PRESETS["ollama"]) == (base_url,)
    for name, url in (("ollama/m", base_url.removesuffix("/v1")), ("chat+ollama/m", base_url)):
        driver = driver_for(name)
        assert isinstance(driver, HttpDriver)
        assert driver.base_url == url


@pytest.mark.parametrize("value", ["http://me:CANARY@box", "ftp://box", "box:99999", "a b", "/run/CANARY.sock", "[::"])
def test_a_variable_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OLLAMA_HOST", value)
    for text in ("ollama", "ollama/m"):
        with pytest.raises(UsageError, match="OLLAMA_HOST") as caught:
            driver_for(text)
        assert "CANARY" not in str(caught.value)
    assert preset_at("http://127.0.0.1:8000/v1") == PRESETS["vllm"]  # one bad variable spoils no other preset


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        ("0.0.0.0", "", "http://127.0.0.1:8080/v1"),
        ("", "9000", "http://127.0.0.1:9000/v1"),
        ("box", "9000", "http://box:9000/v1"),
        ("box,/tmp/llama.sock", "9000", "http://box:9000/v1"),
    ],
)
def test_llamacpp_reads_two_variables(monkeypatch: pytest.MonkeyPatch, host: str, port: str, base_url: str) -> None:
    monkeypatch.setenv("LLAMA_ARG_HOST", host)
    monkeypatch.setenv("LLAMA_ARG_PORT", port)
    driver = driver_for("llamacpp/m")
    assert isinstance(driver, HttpDriver)
    assert driver.base_url == base_url


def test_a_key_from_the_environment_goes_to_its_own_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "CANARY")
    assert sent_key(driver_for("vllm/m")) == "Bearer CANARY"
    assert sent_key(driver_for("http://127.0.0.1:8000/v1#m")) == "Bearer CANARY"  # the same server, by its address
    assert sent_key(driver_for("ollama/m")) is None
    assert sent_key(driver_for("http://127.0.0.1:8001/v1#m")) is None
    assert sent_key(driver_for("http://example.com/v1#m")) is None
    assert key_at("http://example.com/v1") is None
    assert "CANARY" not in repr(driver_for("vllm/m"))


def test_a_key_is_read_when_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_for("vllm/m")
    assert sent_key(driver) is None
    monkeypatch.setenv("VLLM_API_KEY", " later ")
    assert sent_key(driver) == "Bearer later"


def test_a_key_that_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    assert sent_key(driver_for("vllm/m", api_key="given")) == "Bearer given"
    assert sent_key(driver_for("http://example.com/v1#m", api_key=lambda: "made")) == "Bearer made"


def test_one_of_several_keys_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "first,second")
    monkeypatch.setenv("LLAMA_ARG_PORT", "8080")
    assert sent_key(driver_for("llamacpp/m")) == "Bearer first"


def test_presets_are_data_that_can_be_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = structs.replace(
        PRESETS["vllm"], name="hosted", base_url="https://api.example.com/v1", key_env="HOSTED_KEY", local=False
    )
    monkeypatch.setitem(PRESETS, "hosted", hosted)
    monkeypatch.setenv("HOSTED_KEY", "k")
    driver = driver_for("hosted/m")
    assert isinstance(driver, HttpDriver)
    assert (driver.base_url, driver.model, sent_key(driver)) == ("https://api.example.com/v1", "hosted/m", "Bearer k")


def test_every_preset_says_how_to_start_it() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        if not preset.local:
            continue
        assert preset.base_url.endswith("/v1")
        assert preset.start_hint.format(model="NAME", port=1)
        assert preset.fetch_hint.format(model="NAME", port=1)


HOSTED = {
    "openai/gpt-5": ("https://api.openai.com/v1/responses", {"Authorization": "Bearer k"}),
    "anthropic/claude-opus-4-6": (
        "https://api.anthropic.com/v1/messages",
        {"x-api-key": "k", "anthropic-version": "2023-06-01"},
    ),
    "gemini/gemini-2.5-flash": (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        {"x-goog-api-key": "k"},
    ),
    "azure/my-gpt": ("https://res.openai.azure.com/openai/v1/responses", {"api-key": "k"}),
    "chat+azure/my-deepseek": ("https://res.openai.azure.com/openai/v1/chat/completions", {"api-key": "k"}),
    "chat+openai/gpt-4.1": ("https://api.openai.com/v1/chat/completions", {"Authorization": "Bearer k"}),
    "chat+anthropic/claude-opus-4-6": ("https://api.anthropic.com/v1/chat/completions", {"Authorization": "Bearer k"}),
    "responses+xai/grok-4.5": ("https://api.x.ai/v1/responses", {"Authorization": "Bearer k"}),
    "openrouter/meta/llama-4": ("https://openrouter.ai/api/v1/chat/completions", {"Authorization": "Bearer k"}),
    "deepseek/deepseek-chat": ("https://api.deepseek.com/v1/chat/completions", {"Authorization": "Bearer k"}),
    "groq/llama": ("https://api.groq.com/openai/v1/chat/completions", {"Authorization": "Bearer k"}),
    "together/llama": ("https://api.together.xyz/v1/chat/completions", {"Authorization": "Bearer k"}),
    "mistral/mistral-large": ("https://api.mistral.ai/v1/chat/completions", {"Authorization": "Bearer k"}),
    "xai/grok": ("https://api.x.ai/v1/chat/completions", {"Authorization": "Bearer k"}),
}


class TestHosted:
    """Providers: data, not classes. What goes where, and with whose key."""

    @pytest.fixture(autouse=True)
    def azure(self, monkeypatch: pytest.MonkeyPatch, no_variables: None) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://res.openai.azure.com/")

    @pytest.mark.parametrize("model", HOSTED)
    def test_where_it_goes_and_with_which_headers(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for preset in PRESETS.values():
            if preset.key_env:
                monkeypatch.setenv(preset.key_env, f"wrong {preset.name}")
        preset = PRESETS[model.partition("/")[0].rpartition("+")[2]]
        monkeypatch.setenv(str(preset.key_env), "k")
        driver = driver_for(model)
        assert isinstance(driver, HttpDriver)
        url, headers = HOSTED[model]
        assert driver.base_url + driver.codec.path == url
        assert driver.served_model == model.partition("/")[2]
        assert driver.model == model
        sent = driver.headers(ModelRequest(messages=()))
        assert {name: sent.get(name) for name in headers} == headers
        assert "wrong" not in str(sent)

    @pytest.mark.parametrize("model", HOSTED)
    def test_without_a_key_none_is_sent(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        preset = PRESETS[model.partition("/")[0].rpartition("+")[2]]
        monkeypatch.delenv(str(preset.key_env), raising=False)
        sent = driver_for(model)
        assert isinstance(sent, HttpDriver)
        names = {name.lower() for name in sent.headers(ModelRequest(messages=()))}
        assert not names & {"authorization", "api-key", "x-api-key", "x-goog-api-key"}

    @pytest.mark.parametrize("provider", [name for name, preset in PRESETS.items() if not preset.local])
    def test_a_provider_alone_names_no_model(self, provider: str) -> None:
        with pytest.raises(UsageError, match="names no model") as caught:
            driver_for(provider)
        assert f"{provider}/MODEL" in caught.value.hint

    def test_local_asks_none_of_them(self) -> None:
        assert [name for name, preset in PRESETS.items() if preset.local] == ["ollama", "lmstudio", "vllm", "llamacpp"]


class TestAzure:
    """Azure has no address of its own: the user's resource has one. Written from documentation."""

    @pytest.mark.parametrize(
        ("value", "base_url"),
        [
            ("https://res.openai.azure.com", "https://res.openai.azure.com/openai/v1"),
            ("https://res.openai.azure.com/", "https://res.openai.azure.com/openai/v1"),
            ("https://res.openai.azure.com/openai/v1/", "https://res.openai.azure.com/openai/v1"),
            ("https://res.openai.azure.com/openai/deployments/d/chat/completions", "https://res.openai.azure.com/openai/v1"),
            ("https://openai.services.ai.azure.com", "https://openai.services.ai.azure.com/openai/v1"),
            ("res.openai.azure.com", "https://res.openai.azure.com/openai/v1"),
            ("https://gateway.example/azure/openai", "https://gateway.example/azure/openai/v1"),
        ],
    )
    def test_the_resource_is_read_as_people_write_it(self, value: str, base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", value)
        assert addresses(PRESETS["azure"]) == (base_url,)

    def test_without_a_resource_it_says_what_to_set(self) -> None:
        with pytest.raises(UsageError, match="AZURE_OPENAI_ENDPOINT is not set") as caught:
            driver_for("azure/my-gpt")
        assert "https://NAME.openai.azure.com" in caught.value.hint
        assert preset_at("https://api.x.ai/v1") == PRESETS["xai"]  # and that stops nobody else

    @pytest.mark.parametrize(
        "value", ["https://me:CANARY@res.openai.azure.com", "https://res/?api-key=CANARY", "https://[", "a b"]
    )
    def test_what_is_no_address_is_not_repeated(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", value)
        with pytest.raises(UsageError, match="AZURE_OPENAI_ENDPOINT does not hold the address") as caught:
            driver_for("azure/my-gpt")
        assert "CANARY" not in str(caught.value)

    def test_its_key_goes_to_the_resource_by_any_name_and_nowhere_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://res.openai.azure.com")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "CANARY")
        for text, there in [
            ("https://res.openai.azure.com/openai/v1#my-gpt", True),
            ("responses+https://res.openai.azure.com/openai/v1#my-gpt", True),
            ("https://other.openai.azure.com/openai/v1#my-gpt", False),
        ]:
            driver = driver_for(text)
            assert isinstance(driver, HttpDriver)
            sent = driver.headers(ModelRequest(messages=()))
            assert sent.get("api-key") == ("CANARY" if there else None)
            assert "Authorization" not in sent

    @pytest.mark.parametrize(
        ("deployment", "asked"), [("gpt-5.5", True), ("gpt-5.2-chat", False), ("gpt-4o", False), ("mine", False)]
    )
    def test_reasoning_is_asked_for_only_where_it_is_known_to_be_given(
        self, deployment: str, asked: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://res.openai.azure.com")
        assert ("include" in body_of(f"azure/{deployment}")) is asked


def body_of(model: str, **fields: Any) -> dict[str, Any]:
    driver = driver_for(model)
    assert isinstance(driver, HttpDriver)
    return json.loads(driver.codec.encoder(driver.served_model).encode(ModelRequest(messages=(UserMessage("Hi"),), **fields)))


class TestFormats:
    """`FORMAT+` in front of any model says how its server is asked."""

    @pytest.mark.parametrize(
        ("text", "url", "codec"),
        [
            ("anthropic+http://host:9/v1#m", "http://host:9/v1/messages", AnthropicCodec),
            ("anthropic+http://host:9#m", "http://host:9/v1/messages", AnthropicCodec),
            ("anthropic+http://host:9/v1/messages#m", "http://host:9/v1/messages", AnthropicCodec),
            ("ANTHROPIC+http://host:9#m", "http://host:9/v1/messages", AnthropicCodec),
            ("responses+http://host:9/v1#m", "http://host:9/v1/responses", ResponsesCodec),
            ("responses+http://host:9/v1/responses#m", "http://host:9/v1/responses", ResponsesCodec),
            ("chat+http://host:9/v1#m", "http://host:9/v1/chat/completions", ChatCodec),
            ("gemini+http://host:9#m", "http://host:9/v1beta/models/m:streamGenerateContent?alt=sse", GeminiCodec),
            ("ollama+http://host:9#qwen3:8b", "http://host:9/api/chat", OllamaCodec),
            ("ollama+http://host:9/v1#qwen3:8b", "http://host:9/api/chat", OllamaCodec),
            ("ollama+http://host:9/api/chat#qwen3:8b", "http://host:9/api/chat", OllamaCodec),
            ("ollama+https://host/prefix/v1#m", "https://host/prefix/api/chat", OllamaCodec),
            ("ollama+ollama/qwen3:8b", "http://127.0.0.1:11434/api/chat", OllamaCodec),
            ("ollama/qwen3:8b", "http://127.0.0.1:11434/api/chat", OllamaCodec),
            ("chat+ollama/qwen3:8b", "http://127.0.0.1:11434/v1/chat/completions", ChatCodec),
            ("http://127.0.0.1:11434/v1#qwen3:8b", "http://127.0.0.1:11434/v1/chat/completions", ChatCodec),
            ("anthropic+vllm/org/m", "http://127.0.0.1:8000/v1/messages", AnthropicCodec),
            ("vllm/org/m+v2", "http://127.0.0.1:8000/v1/chat/completions", ChatCodec),
        ],
    )
    def test_it_is_asked_in_that_format_where_that_format_is(self, text: str, url: str, codec: type) -> None:
        driver = driver_for(text)
        assert isinstance(driver, HttpDriver)
        assert driver.base_url + driver.codec.path == url
        assert type(driver.codec) is codec

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("ollama+ollama/qwen3:8b", "ollama+ollama/qwen3:8b"),
            ("anthropic+http://host:9#m", "anthropic+http://host:9/v1#m"),
            ("ollama+http://host:9/v1#m", "ollama+http://host:9#m"),
        ],
    )
    def test_its_name_makes_the_same_driver_again(self, text: str, name: str) -> None:
        assert driver_for(text).model == name
        assert driver_for(name).model == name

    @pytest.mark.parametrize(
        "text", ["anthropic+local", "ollama+local", "ollama+ollama", "ollama+http://host:9", "responses+llamacpp"]
    )
    def test_a_model_may_be_found_later(self, text: str) -> None:
        driver = driver_for(text)
        assert isinstance(driver, DiscoveredDriver)
        assert driver.model == text

    @pytest.mark.parametrize(
        ("text", "said", "hinted"),
        [
            ("antropic+http://host#m", "no format is named 'antropic'", 'Did you mean "anthropic+"?'),
            ("openai+http://host#m", "no format is named 'openai'", 'Did you mean "chat+"?'),
            ("native+ollama/m", "no format is named 'native'", 'Did you mean "ollama+"?'),
            ("zzz+http://host#m", "no format is named 'zzz'", "chat, responses, anthropic, gemini, ollama"),
            ("+http://host#m", "no format is named ''", "FORMAT+URL#NAME"),
            ("anthropic+deepseek/m", "DeepSeek is not asked in the format 'anthropic'", "It is in chat"),
            ("ollama+vllm/m", "vLLM is not asked in the format 'ollama'", "ollama+URL#NAME"),
            ("chat+olama/m", "no provider is named 'olama'", '"chat+ollama/m"'),
            ("gemini+localhost:8080/v1#m", "no provider is named 'localhost:8080'", '"gemini+http://localhost:8080/v1#m"'),
            ("gemini+http://host", "names no model", "gemini+http://host#MODEL"),
            ("gemini+local", "names no model", "gemini+URL#MODEL"),
            ("https://api.openai.com/v1", "names no model", "https://api.openai.com/v1#MODEL"),
            ("chat+openai", "names no model of OpenAI", "chat+openai/MODEL"),
        ],
    )
    def test_what_cannot_be_understood_is_answered_with_what_can(self, text: str, said: str, hinted: str) -> None:
        with pytest.raises(UsageError) as caught:
            driver_for(text)
        assert said in caught.value.message
        assert hinted in caught.value.hint

    @pytest.mark.parametrize(
        "text",
        [
            "antropic+http://me:CANARY@host/v1#m",
            "CANARY+http://host/v1",
            "sk-CANARY+http://host/v1",
            "gemini+localhost:8080/v1?key=CANARY",
            "localhost:8080/v1?key=CANARY",
            "me:CANARY@localhost:8080/v1",
            "olama/m?key=CANARY",
            "chat+htp://me:CANARY@host/v1#m",
            "chat+olama+http://me:CANARY@host/v1",
            "ollama+sk-CANARY@host/m",
            "http://host/v1?key=CANARY#m",
            "http://host/v1#m?key=CANARY",
            "chat+http://me:CANARY@host/v1#m",
        ],
    )
    def test_a_mistyped_address_repeats_no_secret(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            driver_for(text)
        assert "CANARY" not in str(caught.value) + repr(caught.value) + caught.value.hint

    def test_a_key_goes_where_the_format_has_it_and_to_its_own_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLLAMA_API_KEY", "CANARY")
        assert sent_key(driver_for("ollama+http://127.0.0.1:11434#m")) == "Bearer CANARY"
        assert sent_key(driver_for("ollama+http://127.0.0.1:11435#m")) is None
        driver = driver_for("anthropic+ollama/m")
        assert isinstance(driver, HttpDriver)
        assert driver.headers(ModelRequest(messages=()))["x-api-key"] == "CANARY"

    def test_a_preset_is_asked_in_its_own_dialect_by_its_address_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_ARG_PORT", "8080")
        for text in ("responses+llamacpp/m", "responses+http://127.0.0.1:8080/v1#m"):
            assert body_of(text, options=Options(seed=1))["seed"] == 1
        assert "include" not in body_of("responses+http://host:9/v1#gpt-5")  # only OpenAI has it
        assert "include" in body_of("openai/gpt-5") and "include" not in body_of("openai/gpt-5-chat-latest")
