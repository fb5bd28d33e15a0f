"""`treadle run`, `treadle resume` and `treadle demo`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import click

from treadle.cli.exits import EXITS, USAGE, of_error
from treadle.cli.options import AgentOptions, agent_options, repeated
from treadle.cli.person import Person, person_at_terminal
from treadle.cli.render import renderer_for
from treadle.cli.saved import SavedRun, load_run
from treadle.cli.watch import watch
from treadle.errors import ModelError, TreadleError, UsageError
from treadle.tools.function import FunctionTool
from treadle.values.ports import Driver
from treadle.values.state import RunResult
from treadle.values.toolcalls import Decision, Deny, Edit, Say, approve

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
    treadle run "..." --tools files,shell               on the files here; you are asked before anything changes
    treadle run "..." --tool mytools.py:get_weather     with a function of yours as a tool
    treadle resume run.json                             carry on a run that waits for you, or broke off
    """


@treadle.command(epilog=_EXITS_HELP)
@click.argument("prompt")
@agent_options
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the run in a file as it goes, readable by you alone, so that `treadle resume FILE` can carry it on.",
)
@click.option(
    "--print-request", is_flag=True, help="Print the HTTP request that would be sent first, keys hidden, and send nothing."
)
def run(prompt: str, options: AgentOptions, save: Path | None, print_request: bool) -> None:
    """Run PROMPT (or - for standard input) to its end, showing what happens.

    In a terminal everything is drawn, and you are asked about calls that wait for you: y, n, or other arguments. In a pipe the answer
    alone goes to standard output and notes on tools and errors to standard error; with --json every event is a line. Nobody is asked
    anything there: at a call that waits the run stops with exit code 6.

    Ctrl-C stops the run, also while you are asked, with exit code 130; a second one ends the program at once.

    \b
    treadle run "What is this project?" --tools read-files              looks, changes nothing
    treadle run "Fix the typos in docs/" --tools files                  shows each change and asks
    treadle run "Make the tests pass" --tools files,shell \\
        --approve "allow:shell:pytest -q" --approve "allow:edit_file:src/*"
                                                                        asks about all but these
    treadle run "Sum up https://..." --tools fetch --approve "allow:fetch:host=docs.python.org"
    treadle run "..." --model ollama/qwen3:8b --window 16384            loads the model with this window, and keeps within it
    treadle run "..." --tools files -w ~/notes --save run.json < /dev/null
                                                                        stops where somebody has to decide
    treadle resume run.json --tools files -w ~/notes --yes              and goes on

    The PATTERN of a rule has * ? and [...]. It is about a command, a path inside the workspace or a URL; for your own tools write
    ARGUMENT=PATTERN. Commands that a shell would read more into than their words fit no pattern, and a pattern says nothing about what a
    program does with its arguments: allow whole commands. A call that fits no rule is as with `ask`.
    """
    with _errors():
        prompt = sys.stdin.read() if prompt == "-" else prompt
        person = None if options.as_json else person_at_terminal()
        tools = options.tools(with_person=person is not None)
        if print_request:
            if save is not None:
                raise UsageError("--print-request sends nothing, so there is no run to --save", hint="Leave one of them out.")
            _print_request(options, tools, prompt)
            return
        saved = None if save is None else SavedRun(save)
        _go(options, tools, person, saved, prompt=prompt)


@treadle.command(epilog=_EXITS_HELP)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@agent_options
@click.option("--approve-call", multiple=True, metavar="ID", help="Let this call run.")
@click.option("--deny-call", multiple=True, metavar="ID[=REASON]", help="Do not let it run; the model is told why.")
@click.option("--edit-call", multiple=True, metavar="ID=JSON", help="Let it run with these arguments instead.")
@click.option("--say-call", multiple=True, metavar="ID=TEXT", help="The answer to a question.")
@click.option("--yes", is_flag=True, help="Approve all other calls that wait now. Later ones wait again; see --approve.")
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the run here from now on.  [default: the same file]",
)
def resume(
    file: Path,
    options: AgentOptions,
    approve_call: tuple[str, ...],
    deny_call: tuple[str, ...],
    edit_call: tuple[str, ...],
    say_call: tuple[str, ...],
    yes: bool,
    save: Path | None,
) -> None:
    """Carry on the run in FILE, which `--save` wrote: one that waits for a person, failed, or was stopped.

    The file holds the conversation and nothing of the settings: give the same options as before. In a terminal you are asked for the
    answers that are missing. In a pipe, or with --json, the run says what waits and stops with exit code 6 while one is missing.
    --approve decides about calls that still wait, and those to come.

    \b
    treadle resume run.json --tools files                               asks you, in a terminal
    treadle resume run.json --tools files --yes                         approves what waits now
    treadle resume run.json --tools files,shell --approve-call call_1 --deny-call "call_2=not the lock file"
    treadle resume run.json --tools files --edit-call 'call_1={"path": "notes.md", "content": "..."}'
    treadle resume run.json --tools ask --say-call "call_3=the blue one"
    """
    with _errors():
        loaded = load_run(file)
        decisions = _decisions(loaded, approve_call, deny_call, edit_call, say_call, yes=yes)
        person = None if options.as_json else person_at_terminal()
        asks = any(call.name == "ask_user" for call in loaded.pending)
        tools = options.tools(with_person=person is not None, ask=asks)
        _check_tools(loaded, tools)
        saved = SavedRun(file if save is None else save, loaded.state)
        _go(options, tools, person, saved, loaded=loaded, decisions=decisions)


@treadle.command()
@click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON.")
def demo(as_json: bool) -> None:
    """A real run with nothing to set up: a tiny model, two tools side by side, an answer."""
    from treadle.cli.demo import run_demo

    with _errors():
        code = run_demo(as_json=as_json)
    sys.exit(code)


def _go(
    options: AgentOptions,
    tools: Sequence[FunctionTool[..., Any]],
    person: Person | None,
    saved: SavedRun | None,
    *,
    prompt: str = "",
    loaded: RunResult | None = None,
    decisions: Mapping[str, Decision] = MappingProxyType({}),
) -> NoReturn:
    """Run a prompt, or carry a run on, and exit with its code."""
    same_options = repeated()
    with _model(options) as driver:
        agent = options.agent(driver, tools, saved)
        code = watch(
            agent,
            lambda: agent.stream(prompt) if loaded is None else agent.resume_stream(loaded, decisions),
            renderer_for(json=options.as_json, person=person),
            person=person,
            saved=saved,
            same_options=same_options,
        )
    sys.exit(code)


def _print_request(options: AgentOptions, tools: Sequence[FunctionTool[..., Any]], prompt: str) -> None:
    """As text, or with --json as a line whose `body` is the JSON that is sent."""
    with _model(options) as driver:
        request = asyncio.run(options.agent(driver, tools, None).next_request(prompt))
    if options.as_json:
        shown = {"method": request.method, "url": request.url, "headers": request.headers, "body": json.loads(request.body)}
        click.echo(json.dumps(shown, ensure_ascii=False))
    else:
        click.echo(str(request))


def _decisions(
    loaded: RunResult,
    approved: Sequence[str],
    denied: Sequence[str],
    edited: Sequence[str],
    said: Sequence[str],
    *,
    yes: bool,
) -> dict[str, Decision]:
    """The answers on the command line, by call id.

    Raises:
        UsageError: One is for no waiting call, has no value, or is the second for its call.
    """
    waiting = {call.call_id: call for call in loaded.pending}
    decisions: dict[str, Decision] = {}
    for option, values in (("--approve-call", approved), ("--deny-call", denied), ("--edit-call", edited), ("--say-call", said)):
        for value in values:
            # An id is the server's, and may itself have an equals sign.
            fitting = [call_id for call_id in waiting if value == call_id or value.startswith(f"{call_id}=")]
            call_id = max(fitting, key=len, default=None)
            if call_id is None:
                ids = ", ".join(waiting) or "none"
                raise UsageError(f"{option} {value}: no such call waits for an answer", hint=f"Waiting: {ids}.")
            if call_id in decisions:
                raise UsageError(f"{option} {value}: there are two answers for {call_id}", hint="Give one.")
            text = value[len(call_id) + 1 :]
            match option:
                case "--approve-call" if value == call_id:
                    decisions[call_id] = approve
                case "--deny-call":
                    decisions[call_id] = Deny(text)
                case "--edit-call" if text:
                    decisions[call_id] = Edit(text)
                case "--say-call" if text:
                    decisions[call_id] = Say(text)
                case _:
                    hint = "Write --approve-call ID, --deny-call ID=REASON, --edit-call ID=JSON or --say-call ID=TEXT."
                    raise UsageError(f"{option} {value} cannot be understood", hint=hint)
    if yes:
        decisions |= {
            call.call_id: approve for call in loaded.pending if call.asks == "approval" and call.call_id not in decisions
        }
    return decisions


def _check_tools(loaded: RunResult, tools: Sequence[FunctionTool[..., Any]]) -> None:
    """Without its tool a call that waits would be told to the model as one that cannot be, and be lost.

    Raises:
        UsageError: A tool is missing.
    """
    names = {tool.spec.name for tool in tools}
    for call in loaded.pending:
        if call.name not in names:
            hint = "Give the same --tools, --workspace and --tool as the run had."
            raise UsageError(f"the run waits with a call of {call.name}, and there is no such tool here", hint=hint)


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
def _model(options: AgentOptions) -> Generator[Driver]:
    """The model to run on. A .gguf file is served for as long as the block lasts; a server to be found is found, and named."""
    from treadle.drivers.catalog import driver_for
    from treadle.drivers.discovery import DiscoveredDriver

    if options.model.lower().endswith(".gguf"):
        from treadle.drivers.embedded import LlamaServer

        window = {} if options.window is None else {"n_ctx": options.window}
        with LlamaServer(Path(options.model), **window) as server:
            yield server.driver
        return
    driver = driver_for(options.model)
    if isinstance(driver, DiscoveredDriver):
        with contextlib.suppress(ModelError):  # the run says it again, as its last event
            driver = asyncio.run(driver.resolve())
            if not options.as_json:
                click.secho(f"model: {driver.model} at {driver.base_url}", err=True, dim=True)
    yield driver
