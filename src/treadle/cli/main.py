"""`treadle run` and `treadle demo`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from treadle.cli.exits import EXITS, USAGE, of_error, of_stop_reason
from treadle.cli.render import Renderer, renderer_for
from treadle.agent.agent import Agent
from treadle.errors import ModelError, TreadleError, UsageError
from treadle.values.limits import Limits
from treadle.values.ports import Driver
from treadle.values.request import Options

__all__ = ["treadle"]

_EXITS_HELP = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXITS.items())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="treadle")
def treadle() -> None:
    """Run agents on the model servers people really run.

    \b
    treadle demo                                        no server, no key, no download
    treadle run "What is 12*7?"                         on whatever model server is running here
    treadle run "..." --model ollama/qwen3:8b           on that model
    treadle run "..." --model ./model.gguf              on a GGUF file, served by treadle itself
    treadle run "..." --tool mytools.py:get_weather     with a function of yours as a tool
    """


@treadle.command(epilog=_EXITS_HELP)
@click.argument("prompt")
@click.option(
    "--model",
    "-m",
    envvar="TREADLE_MODEL",
    default="local",
    show_default=True,
    show_envvar=True,
    help="provider/name (ollama/qwen3:8b), a server's URL, URL#model, a .gguf file, or `local`: find a running server.",
)
@click.option(
    "--tool",
    "-t",
    "tools",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A function as a tool. Also FILE.py:FUNCTION. Repeatable.",
)
@click.option("--instructions", "-i", help="The system text.")
@click.option("--max-turns", type=click.IntRange(1), help="Model turns before the run stops.  [default: 50]")
@click.option("--max-tokens", type=click.IntRange(1), help="Output tokens a turn, as asked of the server.")
@click.option("--temperature", type=float, help="Sampling temperature. Not set: the server decides.")
@click.option("--seed", type=int, help="Sampling seed.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON.")
def run(
    prompt: str,
    model: str,
    tools: tuple[str, ...],
    instructions: str | None,
    max_turns: int | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Run PROMPT (or - for standard input) to its end, showing what happens.

    In a terminal everything is drawn; in a pipe the answer alone goes to standard output and notes on tools and
    errors to standard error; with --json every event is a line.
    """
    with _errors():
        prompt = sys.stdin.read() if prompt == "-" else prompt
    with _errors(), _model(model, note=not as_json) as driver:
        agent = Agent(
            driver,
            tools=[_load_tool(name) for name in tools],
            instructions=instructions,
            options=Options(max_tokens=max_tokens, temperature=temperature, seed=seed),
            limits=Limits() if max_turns is None else Limits(max_turns=max_turns),
        )
        code = show(agent, prompt, renderer_for(json=as_json))
    sys.exit(code)


@treadle.command()
@click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON.")
def demo(as_json: bool) -> None:
    """A real run with nothing to set up: a tiny model, two tools side by side, an answer."""
    from treadle.cli.demo import run_demo

    with _errors():
        code = run_demo(as_json=as_json, show=show)
    sys.exit(code)


def show(agent: Agent, prompt: str, renderer: Renderer) -> int:
    """Run to the end, showing every event; the exit code. Ctrl-C ends the run; a second one ends the program.

    What a tool prints goes to standard error, so that it cannot end up in the answer or between lines of JSON.
    """

    async def watch() -> int:
        run = agent.stream(prompt)
        with _on_signals(lambda: asyncio.ensure_future(run.cancel())):
            async with run:
                async for event in run:
                    renderer.show(event)
            stop_reason = run.result.stop_reason
        assert stop_reason is not None  # a failed run raised
        return of_stop_reason(stop_reason)

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return asyncio.run(watch())
    except TreadleError as error:
        if error.result is None:  # it failed before there was a run to show it
            raise
        return of_error(error)


@contextlib.contextmanager
def _on_signals(stop: Callable[[], Any]) -> Generator[None]:
    """Call `stop` on the first Ctrl-C, SIGTERM or hang-up; leave the second to Python."""
    loop = asyncio.get_running_loop()
    caught = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def first() -> None:
        release()
        stop()

    def release() -> None:
        for number in caught:
            loop.remove_signal_handler(number)

    try:
        for number in caught:
            loop.add_signal_handler(number, first)
    except (NotImplementedError, RuntimeError):  # Windows, or not the main thread: KeyboardInterrupt cancels the run
        caught = []
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def _errors() -> Generator[None]:
    """Errors of ours become a line, a hint and an exit code; a reader who left ends us quietly."""
    try:
        yield
    except TreadleError as error:
        click.echo(f"error: {error.message}\n  {error.hint}", err=True)
        sys.exit(of_error(error))
    except BrokenPipeError:
        # Point standard output elsewhere, so that the interpreter's own flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a full disk behind standard output
        click.echo(f"error: {error.strerror or error}", err=True)
        sys.exit(USAGE)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _model(model: str, *, note: bool) -> Generator[Driver]:
    """The model to run on. A .gguf file is served for as long as the block lasts; a server to be found is found, and named."""
    from treadle.drivers.catalog import driver_for
    from treadle.drivers.discovery import DiscoveredDriver

    if model.lower().endswith(".gguf"):
        from treadle.drivers.embedded import LlamaServer

        with LlamaServer(Path(model)) as server:
            yield server.driver
        return
    driver = driver_for(model)
    if isinstance(driver, DiscoveredDriver):
        with contextlib.suppress(ModelError):  # the run says it again, as its last event
            driver = asyncio.run(driver.resolve())
            if note:
                click.secho(f"model: {driver.model} at {driver.base_url}", err=True, dim=True)
    yield driver


def _load_tool(name: str) -> Callable[..., Any]:
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
