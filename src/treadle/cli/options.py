"""What `run` and `resume` have in common: their options, and the agent that these describe."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource
from msgspec import Struct

from treadle.agent.agent import Agent
from treadle.cli.approve import policy_of
from treadle.errors import UsageError
from treadle.policy.compaction import Compaction, ModelSummary, local_summary, sliding_window
from treadle.policy.context import ContextPolicy
from treadle.tools.function import FunctionTool, as_tool
from treadle.values.limits import Limits
from treadle.values.ports import Driver, Journal
from treadle.values.request import Options

__all__ = ["KITS", "AgentOptions", "agent_options", "repeated"]

R = TypeVar("R")

KITS = {
    "files": "list, read, search, write and edit files",
    "read-files": "list, read and search them only",
    "shell": "run commands, with your rights",
    "fetch": "read web pages",
    "todo": "a to-do list",
    "ask": "questions to you",
}

_COMPACTIONS: dict[str, Callable[[], Compaction]] = {
    "local": lambda: local_summary,
    "model": ModelSummary,
    "window": lambda: sliding_window,
}

_INSTRUCTIONS = "You work in a directory on the user's computer. Paths are relative to it."


class AgentOptions(Struct, frozen=True, kw_only=True):
    """The agent as the command line describes it.

    Attributes:
        kits: As given, each maybe several with commas.
        functions: Functions of the user's own, `MODULE:FUNCTION`.
    """

    model: str
    kits: tuple[str, ...]
    workspace: Path
    functions: tuple[str, ...]
    approve: tuple[str, ...]
    instructions: str | None
    max_turns: int | None
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    window: int | None
    compaction: str
    as_json: bool

    def agent(self, driver: Driver, tools: Iterable[FunctionTool[..., Any]], journal: Journal | None) -> Agent:
        """The agent, on that model."""
        tools = tuple(tools)
        instructions = self.instructions
        if instructions is None and {tool.spec.name for tool in tools} & {"read_file", "shell"}:
            instructions = _INSTRUCTIONS
        return Agent(
            driver,
            tools=tools,
            instructions=instructions,
            options=Options(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed),
            limits=Limits() if self.max_turns is None else Limits(max_turns=self.max_turns),
            approvals=policy_of(self.approve, tools),
            context=ContextPolicy(window_tokens=self.window, compaction=_COMPACTIONS[self.compaction]()),
            journal=journal,
        )

    def tools(self, *, with_person: bool, ask: bool = False) -> tuple[FunctionTool[..., Any], ...]:
        """The tools that are asked for, by name or as functions.

        Args:
            with_person: Somebody is there, so `ask` comes along with any other.
            ask: It does in any case.
        """
        kits = _kits(self.kits)
        if ask or (kits and with_person):
            kits["ask"] = None
        return (*_built_in(kits, self.workspace), *(as_tool(load_function(name)) for name in self.functions))


def agent_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options, as one argument `options`."""

    @functools.wraps(command)
    def gathered(**given: Any) -> R:
        mine = {name: given.pop(name) for name in AgentOptions.__struct_fields__}
        return command(options=AgentOptions(**mine), **given)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


_OPTIONS = (
    click.option(
        "--model",
        "-m",
        envvar="TREADLE_MODEL",
        default="local",
        show_default=True,
        show_envvar=True,
        help="provider/name (ollama/qwen3:8b), a server's URL, URL#model, a .gguf file, or `local`: find a running server."
        " FORMAT+ in front says how it is asked: chat, responses, anthropic, gemini or ollama (anthropic+http://host/v1#name).",
    ),
    click.option(
        "--tools",
        "kits",
        multiple=True,
        metavar="NAME,...",
        help=f"Tools that come along: {'; '.join(f'{name} ({does})' for name, does in KITS.items())}. In a terminal `ask` comes with"
        " any of them.",
    ),
    click.option(
        "--workspace",
        "-w",
        default=".",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
        help="The directory that files are in and commands start in; files outside it are out of reach, for commands nothing is."
        "  [default: the current one]",
    ),
    click.option(
        "--tool",
        "-t",
        "functions",
        multiple=True,
        metavar="MODULE:FUNCTION",
        help="A function of yours as a tool. Also FILE.py:FUNCTION. Repeatable.",
    ),
    click.option(
        "--approve",
        "-a",
        multiple=True,
        metavar="POLICY",
        help="Who is asked before a tool runs. ask: you, before files are written, commands run and pages read. always: you, before"
        " every call. never: nobody; the model then writes files and runs commands without asking. Or rules, tried in order:"
        " ACTION:TOOL[:PATTERN] with allow, ask or deny; see the examples.  [default: ask]",
    ),
    click.option("--instructions", "-i", help="The system text."),
    click.option("--max-turns", type=click.IntRange(1), help="Model turns before the run stops.  [default: 50]"),
    click.option("--max-tokens", type=click.IntRange(1), help="Output tokens a turn, as asked of the server."),
    click.option("--temperature", type=float, help="Sampling temperature. Not set: the server decides."),
    click.option("--seed", type=int, help="Sampling seed."),
    click.option(
        "--window",
        type=click.IntRange(256, 100_000_000),
        metavar="TOKENS",
        help="The model's context window. A conversation that comes near it is shortened before it is sent. Ollama and a .gguf file are"
        " served with this window; of other servers it must be what they have.  [default: the server is asked]",
    ),
    click.option(
        "--compaction",
        type=click.Choice(tuple(_COMPACTIONS)),
        default="local",
        show_default=True,
        help="What stands for the oldest turns then. local: their calls and results in extracts. model: a summary that the model writes,"
        " which takes a call. window: nothing.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON. Nobody is asked anything then."),
)


def repeated() -> str:
    """The options of this command as they were typed, to be given to another one; with a blank before each."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not typed or name not in AgentOptions.__struct_fields__ or name == "as_json":
            continue
        value: object = context.params[name]
        values = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        option = max(parameter.opts, key=len)
        words += [word for each in values for word in (option, str(each))]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _kits(given: Iterable[str]) -> dict[str, None]:
    """The names, in order, each once."""
    names = dict.fromkeys(name.strip() for each in given for name in each.split(",") if name.strip())
    for name in names:
        if name not in KITS:
            raise UsageError(
                f"--tools {name}: there is no such tool", hint=f"There are {', '.join(KITS)}. Your own come with --tool."
            )
    if {"files", "read-files"} <= names.keys():
        raise UsageError(
            "--tools files and read-files exclude each other", hint="`files` can read and write, `read-files` only read."
        )
    return names


def _built_in(kits: Iterable[str], workspace: Path) -> Iterable[FunctionTool[..., Any]]:
    has_long_results = False
    for name in kits:
        has_long_results |= name in ("files", "read-files", "shell", "fetch")
        match name:
            case "files" | "read-files":
                from treadle.tools.builtin.files import file_tools

                yield from file_tools(workspace, read_only=name == "read-files")
            case "shell":
                from treadle.tools.builtin.shell import shell_tool

                yield shell_tool(workspace)
            case "fetch":
                from treadle.tools.builtin.fetch import fetch_tool

                yield fetch_tool()
            case "todo":
                from treadle.tools.builtin.todo import todo

                yield todo
            case _:
                from treadle.tools.builtin.person import ask_user

                yield ask_user
    if has_long_results:
        from treadle.tools.builtin.results import read_result

        yield read_result


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. The working directory is on the path."""
    module_name, colon, function_name = name.rpartition(":")
    if "" not in sys.path:
        sys.path.append("")
    hint = "Write --tool MODULE:FUNCTION or --tool FILE.py:FUNCTION."
    if not colon or not module_name:
        raise UsageError(f"--tool {name}: names no function", hint=hint)
    path = Path(module_name)
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(f"--tool {name}: there is no file {module_name}", hint=hint)
    try:
        module = _from_file(path) if path.suffix == ".py" else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # it is the user's code, and may do anything
        raise UsageError(
            f"--tool {name}: {module_name} cannot be imported ({type(error).__name__}: {error})", hint=hint
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise UsageError(f"--tool {name}: {module_name} has no {function_name}", hint=hint)
    if not callable(function):
        raise UsageError(f"--tool {name}: {function_name} is a {type(function).__name__}, not a function", hint=hint)
    return function


def _from_file(path: Path) -> ModuleType:
    """The module in a file, under a name of its own, so that a tool file called `json.py` shadows nothing."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for the file's own imports
    spec = importlib.util.spec_from_file_location(f"treadle_tool_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
