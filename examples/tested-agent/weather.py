"""A small agent: what a user's project might have."""

from treadle import Agent, Driver, Options, tool

MODEL = "llamacpp/tiny-tool-caller.q8_0"
REPORTS = {"Oslo": "4 C, snow", "Lima": "18 C, sunny"}


@tool(concurrency="read_only")
async def get_weather(city: str) -> str:
    """Current weather in a city."""
    return REPORTS.get(city, "no report")


def make_agent(model: str | Driver = MODEL) -> Agent:
    return Agent(model, tools=[get_weather], options=Options(temperature=0.0, max_tokens=200))
