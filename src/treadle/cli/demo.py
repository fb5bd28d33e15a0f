"""`treadle demo`: a real model server, a real model, real tool calls; only the weather is made up."""

from __future__ import annotations

import ast
import asyncio
import operator
import sys
import time
from collections.abc import Callable
from typing import Annotated

from rich.console import Console
from rich.text import Text as Styled

from treadle.agent.agent import Agent
from treadle.cli.render import JsonLines, Plain, Renderer, Terminal
from treadle.cli.watch import watch
from treadle.errors import MissingExtra, ToolError
from treadle.tools.function import tool
from treadle.values.request import Options

__all__ = ["PROMPT", "TOOLS", "run_demo"]

PROMPT = "What's the weather in Oslo and what is 12*(3+4)?"
"""The tiny model knows this way of asking; its README says what else it knows."""

_WEATHER = {"Oslo": "-3 C, snow", "Lima": "19 C, fog", "Rome": "24 C, sunny"}
_TOOL_TAKES_S = 0.8  # long enough to see that two tools take the time of one

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b,
}

_INTRO = (
    "treadle demo · llama.cpp runs in this process, with a model of 0.97 MB that comes along.\n"
    "The model is tiny: it knows five tools and little else. The weather is made up, the rest is real.\n"
)
_OUTRO = """
Next, with a real model (in a clone, put `uv run` before each):

  treadle run "Why is the sky blue?"                                  whatever model server runs here
  treadle run "..." --model ollama/qwen3:8b                           Ollama, after: ollama pull qwen3:8b
  treadle run "..." --model ./some-model.gguf                         any GGUF file, no server needed
  treadle run "..." --tools files,shell                               reads, changes and runs; asks you first
  treadle run "..." --tool mytools.py:my_function                     with a function of yours
"""


@tool(concurrency="read_only")
async def get_weather(city: Annotated[str, "Name of the city"]) -> str:
    """Get the weather for a city"""
    await asyncio.sleep(_TOOL_TAKES_S)
    if city not in _WEATHER:
        raise ToolError(f"no weather for {city}; only for {', '.join(_WEATHER)}")
    return _WEATHER[city]


@tool(concurrency="read_only")
def calculator(expression: Annotated[str, "Such as 12*(3+4)"]) -> str:
    """Evaluate an arithmetic expression"""
    time.sleep(_TOOL_TAKES_S)  # a plain function: it runs in a thread
    if len(expression) > 100:
        raise ToolError("the expression is longer than 100 characters")
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError, OverflowError) as error:
        raise ToolError(f"cannot evaluate: {error}") from None
    return f"{value:g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case _:
            raise ToolError("only numbers, + - * / and brackets are understood")


TOOLS = (get_weather, calculator)


def run_demo(*, as_json: bool) -> int:
    """Serve the tiny model, ask it, draw what happens; the exit code."""
    try:
        from treadle_tiny import model_path
    except ImportError:
        raise MissingExtra("the demo's model", extra="demo") from None
    from treadle.drivers.embedded import LlamaServer

    drawn = sys.stdout.isatty() and not as_json
    console = Console(file=sys.stdout if drawn else sys.stderr, highlight=False, markup=False, emoji=False)
    renderer: Renderer = Plain(sys.stdout, sys.stderr)
    if as_json:
        renderer = JsonLines(sys.stdout.buffer)
    elif drawn:
        renderer = Terminal(console, show_prompt=True)
    if not as_json:
        console.print(Styled(_INTRO, "dim"), soft_wrap=True)
    with LlamaServer(model_path(), n_threads=1) as server:
        agent = Agent(server.driver, tools=TOOLS, options=Options(temperature=0.0, max_tokens=200))
        code = watch(agent, lambda: agent.stream(PROMPT), renderer)
    if not as_json:
        console.print(Styled(_OUTRO, "dim"), soft_wrap=True)
    return code
