"""What is taken out of bytes, in every spelling, and what is left alone because it only looks alike."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.testing.scrub import TAKEN_OUT, Scrubber, environment_secrets, without_address

WORDS = [
    "get_user_settings",
    "user_preferences_of_the_team",
    "list_org_members2",
    "req_validation and proj_directory",
    "user_12345678",
    "user-507f1f77bcf86cd799439011",
    "sk-learn-something-long-name",
    "sk-getUserSettingsOfTheWholeTeam",
    "sk_customer_2024_table_with_rows",
    "pk-fields-of-the-table-users",
    "pk_0123456789abcdef0123456789",
    "Bearer authentication is what they use",
    "the Bearer token-based-authentication-scheme",
    "call /x?key=value of the dict, x?token=abc",
    "https://maps.example/find?key=Oslo-harbour&token=next",
    "/******/ a banner /******/",
]


@pytest.mark.parametrize("words", WORDS)
def test_words_that_only_look_like_keys_are_left_alone(words: str) -> None:
    call = {"message": {"tool_calls": [{"function": {"name": words, "arguments": {words: words, "user_id": "u42"}}}]}}
    data = json.dumps(call).encode()
    scrubber = Scrubber()
    assert scrubber.clean(data) == data
    assert scrubber.clean_request(data) == data
    assert scrubber.clean_answer(data, failed=False) == data
    assert not scrubber.gives_away(words)


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnop1234",
        "sk-ant-api03-Ab1Cd2Ef3Gh4Ij5Kl6Mn7_Op8-Qr9St0Uv1Wx2Yz3AA",
        "sk-or-v1-0123456789abcdef0123456789abcdef",
        "sk-0123456789abcdef0123456789abcdef",
        "sk_live_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8",
        "gsk_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3",
        "csk-ab1cd2ef3gh4ij5kl6mn7op8qr9st0uv",
        "xai-Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "nvapi-Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8-Qr9St0Uv1Wx2Yz3",
        "ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "Bearer Ab1Cd2Ef3Gh4Ij5Kl6Mn7",
        "https://h.example/x?key=Ab1Cd2Ef3Gh4Ij5Kl6Mn7",
    ],
)
def test_keys_of_providers_are_taken_out_wherever_they_stand(key: str) -> None:
    data = json.dumps({"messages": [{"content": f"It is {key}."}]}).encode()
    cleaned = Scrubber().clean(data)
    assert len(cleaned) == len(data)
    assert key.encode() not in cleaned
    assert TAKEN_OUT.search(cleaned.decode())
    json.loads(cleaned)


def test_ids_of_accounts_are_taken_out_of_what_the_server_says_and_not_of_what_the_model_says() -> None:
    account = "org-A1b2C3d4E5f6G7h8I9j0K1l2"
    scrubber = Scrubber()
    error = json.dumps({"error": {"message": f"limit of {account}", "details": [{"org_id": "o1234567"}]}, "user_id": "user-1234"})
    said = json.dumps({"choices": [{"delta": {"content": account, "user_id": "u42"}}], "request_id": "r-123456", "org_id": 7})
    for ending in ("\n\n", ""):
        stream = f"event: x\ndata: {said}\n\ndata: {error}{ending}".encode()
        cleaned = scrubber.clean_answer(stream, failed=False)
        assert len(cleaned) == len(stream)
        first, last = (json.loads(line[6:]) for line in cleaned.splitlines() if line.startswith(b"data: "))
        assert first["choices"] == json.loads(said)["choices"]
        assert TAKEN_OUT.fullmatch(first["request_id"])
        assert (account in str(last), "o1234567" in str(last), "user-1234" in str(last)) == (False, False, False)
    assert account not in scrubber.clean_answer(f"<p>limit of {account}".encode(), failed=True).decode()
    sent = json.dumps({"metadata": {"user_id": "ann-smith"}, "messages": [{"input": {"user_id": "ann-smith"}}]}).encode()
    cleaned = scrubber.clean_request(sent)
    assert json.loads(cleaned)["messages"] == json.loads(sent)["messages"]
    assert TAKEN_OUT.fullmatch(json.loads(cleaned)["metadata"]["user_id"])


CANARY = "ca\"n\\r/y é😀 &<9>'+\nend"


def of_go(text: str) -> str:
    said = json.dumps(text, ensure_ascii=False)
    return said.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def of_dotnet(text: str) -> str:
    """Everything but letters and digits escaped, in upper case."""
    units = text.encode("utf-16-be", "surrogatepass")
    pairs = [int.from_bytes(units[n : n + 2], "big") for n in range(0, len(units), 2)]
    return '"' + "".join(chr(u) if u < 128 and chr(u).isalnum() else f"\\u{u:04X}" for u in pairs) + '"'


WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "JSON": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in ASCII": json.dumps,
    "PHP": lambda text: json.dumps(text).replace("/", "\\/"),
    "Go": of_go,
    ".NET": of_dotnet,
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": text})),
    "JSON in JSON in JSON": lambda text: of_go(json.dumps(of_dotnet(text), ensure_ascii=False)),
    "a path": quote,
    "a query": lambda text: quote(text, safe=""),
    "a query in lower case": lambda text: quote(text, safe="").replace("%F0%9F%98%80", "%f0%9f%98%80"),
    "a form": quote_plus,
    "HTML": html.escape,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, one byte on": lambda text: base64.b64encode(f"a{text}b".encode()).decode(),
    "base64, two bytes on": lambda text: base64.b64encode(f"ab{text}b".encode()).decode(),
    "base64 for addresses": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 in PHP's JSON": lambda text: base64.b64encode(text.encode()).decode().replace("/", "\\/"),
}


@pytest.mark.parametrize("secret", [CANARY, "???>>>~~~ooo", "named canary 333"])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_spelling_is_taken_out(writer: str, secret: str) -> None:
    spelled = WRITERS[writer](secret)
    cleaned = Scrubber([secret]).clean(f"<<{spelled}>>".encode())
    assert len(cleaned) == len(f"<<{spelled}>>".encode())
    left = TAKEN_OUT.sub("", cleaned.decode())
    # Of base64 a character may be left that holds bits of a neighbour; of JSON its frame.
    assert len(left) <= len("<<>>") + (7 if "base64" in writer else 22 if "JSON in" in writer else 2), left
    assert TAKEN_OUT.search(cleaned.decode())


@given(
    st.text('"\\/é😀& <>%+\n\tan1', min_size=6, max_size=12),
    st.sampled_from(["JSON", "JSON in ASCII", "PHP", "Go", ".NET", "JSON in JSON"]),
    st.text('"\\/é n', max_size=3),
)
def test_any_secret_in_any_json(secret: str, writer: str, around: str) -> None:
    scrubber = Scrubber([secret])
    cleaned = scrubber.clean(WRITERS[writer](f"{around}.{secret}.{around}").encode()).decode()
    assert not scrubber.gives_away(cleaned)
    value = json.loads(cleaned)
    assert secret not in value


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"\\u{ord(c):04x}" for c in "named canary 333"),
        json.dumps("".join(f"\\u{ord(c):04x}" for c in "named canary 333")),
    ],
)
def test_what_is_spelled_as_nobody_does_is_still_found(text: str) -> None:
    assert Scrubber(["named canary 333"]).gives_away(text)


def test_base64_in_lines_is_looked_into() -> None:
    packed = base64.encodebytes(b"x" * 50 + b"named canary 333" * 5).decode()
    scrubber = Scrubber(["named canary 333"])
    assert scrubber.hides_in_base64(f"data:text/plain;base64,{packed}")
    assert not scrubber.hides_in_base64(base64.b64encode(b"nothing of that kind").decode())
    assert not scrubber.hides_in_base64("no base64 at all")


def test_the_environment_is_read_by_the_names_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "env-canary-1,env-canary-2")
    monkeypatch.setenv("KEYBOARD", "a keyboard of some kind")
    found = environment_secrets()
    assert {"env-canary-1", "env-canary-2"} < set(found)
    assert "a keyboard of some kind" not in found


def test_cleaning_takes_time_in_proportion() -> None:
    scrubber = Scrubber([CANARY, "\\\\\\\\\\\\x", "aaaaaaaaaaaaab"])
    for text in ("\\" * 200_000, "a" * 200_000, '"' * 200_000, "https://" + "?key=" * 40_000, '{"user_id": ' + '"\\"' * 60_000):
        began = time.process_time()
        scrubber.clean_answer(text.encode(), failed=True)
        scrubber.gives_away(text)
        assert time.process_time() - began < 5


def test_a_models_name_is_kept_without_the_servers_address() -> None:
    assert without_address("http://10.0.0.5:8000/gateway-token/v1#qwen3:8b") == "#qwen3:8b"
    assert without_address("https://user:password@host/v1") == "#"
    assert without_address("ollama/qwen3:8b") == "ollama/qwen3:8b"
