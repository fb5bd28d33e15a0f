"""Exact counts from vLLM: what `/tokenize` and `/v1/messages/count_tokens` say is what the reply reports."""

from __future__ import annotations

import asyncio

import pytest

from tests.servers.slow.served import Served
from tests.servers.test_counting import CONVERSATIONS, counted_and_reported, short
from treadle import HttpDriver, ModelRequest
from treadle.drivers.counting import counter_for
from treadle.wire.anthropic import AnthropicCodec
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import VLLM


@pytest.mark.parametrize("request_", CONVERSATIONS)
@pytest.mark.parametrize("codec", [ChatCodec(VLLM), AnthropicCodec()], ids=lambda codec: codec.path)
def test_the_count_is_what_vllm_reports(vllm: Served, request_: ModelRequest, codec: ChatCodec | AnthropicCodec) -> None:
    async def main() -> None:
        headers = {"Authorization": f"Bearer {vllm.api_key}"}  # vLLM does not look for Anthropic's own header
        driver = HttpDriver(codec, vllm.base_url, vllm.model, headers=headers, counter=counter_for(codec, "vllm"))
        counted, reported = await counted_and_reported(driver, short(request_))
        assert counted is not None
        assert counted == reported

    asyncio.run(main())
