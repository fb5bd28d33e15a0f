"""Its tests. They run offline, from the cassettes beside them."""

from weather import MODEL, make_agent

from treadle.testing import Status, check_events, run_virtual


def test_it_asks_for_both_cities_at_once(cassette):
    agent = make_agent(cassette("two-cities", model=MODEL))
    result = agent.run_sync("What's the weather in Oslo and what's the weather in Lima?")
    assert [message.content for message in result.messages[2:4]] == ["4 C, snow", "18 C, sunny"]
    assert "4 C, snow" in result.text
    assert "18 C, sunny" in result.text
    assert result.stop_reason == "end"


def test_it_comes_through_a_busy_server(cassette):
    agent = make_agent(cassette("two-cities", model=MODEL, faults={1: Status(code=429, retry_after_s=30)}))
    result = run_virtual(agent.run("What's the weather in Oslo and what's the weather in Lima?"))
    assert "18 C, sunny" in result.text


def test_its_events_keep_the_rules_wherever_the_bytes_are_cut(cassette):
    agent = make_agent(cassette("two-cities", model=MODEL, split="bytes"))

    async def watch():
        async with agent.stream("What's the weather in Oslo and what's the weather in Lima?") as run:
            return [event async for event in run]

    check_events(run_virtual(watch()))
