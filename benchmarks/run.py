"""Measure treadle against the raw floor and print a table. See README.md beside this file."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks import encoding, floor, server
from treadle import Agent, HttpDriver, Limits, tool
from treadle.wire.chat import ChatCodec

ROUNDS = 9
LIMITS = Limits(max_turns=1000, output_tokens_per_turn=10**9, output_tokens_per_run=10**9)  # what is cut early costs less


@tool(concurrency="read_only")
async def look(what: str) -> str:
    """Look at something."""
    return f"saw {what}, as calm as ever"


@tool(concurrency="read_only", name="look")
async def look_slowly(what: str) -> str:
    """Look for 100 ms."""
    await asyncio.sleep(0.1)
    return what


@tool(concurrency="read_only", name="look")
def look_in_thread(what: str) -> str:
    """Look for 100 ms, in a thread."""
    time.sleep(0.1)
    return what


SPEC = [
    {"type": "function", "function": {"name": "look", "description": look.spec.description, "parameters": look.spec.parameters}}
]
Measured = tuple[float, float]


def agent(url: str, *tools: object) -> Agent:
    return Agent(HttpDriver(ChatCodec(), url, "m"), tools=tools, limits=LIMITS)  # type: ignore[arg-type]


def measure(
    ours: Callable[[], Awaitable[object]], raw: Callable[[], Awaitable[object]], *, wall: bool = False, rounds: int = ROUNDS
) -> Measured:
    """Seconds of CPU (or wall) of both, medians of rounds taken in turns after one warm-up each."""
    clock = time.perf_counter if wall else time.process_time

    async def once(work: Callable[[], Awaitable[object]]) -> float:
        gc.collect()
        start = clock()
        await work()
        return clock() - start

    async def main() -> Measured:
        times: tuple[list[float], list[float]] = ([], [])
        for round in range(rounds + 1):
            for kind, work in ((0, ours), (1, raw)) if round % 2 else ((1, raw), (0, ours)):
                took = await once(work)
                if round:
                    times[kind].append(took)
        return statistics.median(times[0]), statistics.median(times[1])

    return asyncio.run(main())


async def drained(agent: Agent) -> None:
    async with agent.stream("Hi") as run:
        async for _ in run:
            pass
    assert run.result.stop_reason == "end"


async def whole(agent: Agent) -> None:
    assert (await agent.run("Hi")).stop_reason == "end"


async def raw_turn(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await floor.turn(session, url, {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})


async def raw_loop(url: str, run: Callable[..., Awaitable[str]]) -> None:
    async with aiohttp.ClientSession() as session:
        await floor.loop(session, url, SPEC, run, "Hi")


async def raw_look(what: str) -> str:
    return f"saw {what}, as calm as ever"


def row(name: str, unit: str, ours: float, raw: float, note: str = "") -> None:
    print(f"| {name} | {ours:.4g} {unit} | {raw:.4g} {unit} | **{ours / raw:.2f}** | {note} |", flush=True)


PATH = "/chat/completions"


def burst(base: str) -> None:
    n = 20_000
    for name, work in (("streamed", drained), ("run", whole)):
        ours, raw = measure(lambda work=work: work(agent(f"{base}/burst/{n}")), lambda: raw_turn(f"{base}/burst/{n}{PATH}"))
        row(f"CPU per token, burst, {name}", "us", ours / n * 1e6, raw / n * 1e6, "aim: at most 2")


def drip(base: str) -> None:
    n = 2_000
    ours, raw = measure(lambda: drained(agent(f"{base}/drip/{n}")), lambda: raw_turn(f"{base}/drip/{n}{PATH}"), rounds=5)
    row("CPU per token, one TCP segment each", "us", ours / n * 1e6, raw / n * 1e6, "aim: at most 2")


def turns(base: str) -> None:
    per_turn: dict[int, Measured] = {}
    for n in (50, 200):
        url = f"{base}/loop/{n}"
        ours, raw = measure(lambda url=url: drained(agent(url, look)), lambda url=url: raw_loop(url + PATH, raw_look), rounds=7)
        per_turn[n] = (ours / n * 1e6, raw / n * 1e6)
        row(f"CPU per turn, {n}-turn tool loop", "us", *per_turn[n], "aim: at most 2")
    growth, floor_growth = (per_turn[200][i] / per_turn[50][i] for i in (0, 1))
    print(
        f"| growth of a turn's CPU, 50 to 200 turns | x{growth:.2f} | x{floor_growth:.2f} | **{growth / floor_growth:.2f}** | aim: at most 1.5 |"
    )


def parallel(base: str) -> None:
    url = f"{base}/parallel/8"

    async def raw_async() -> None:
        await asyncio.gather(*(asyncio.sleep(0.1) for _ in range(8)))

    async def raw_threads() -> None:
        threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            await asyncio.to_thread(each.join)

    for name, work, raw in (("async", look_slowly, raw_async), ("sync, in threads", look_in_thread, raw_threads)):
        ours, floor_s = measure(lambda work=work: drained(agent(url, work)), raw, wall=True)
        row(
            f"wall, 8 tools of 100 ms and two model turns, {name}",
            "ms",
            ours * 1e3,
            floor_s * 1e3,
            "aim: at most 1.2; the floor is the tools alone",
        )


def many(base: str) -> None:
    n, tokens = 500, 100
    url = f"{base}/burst/{tokens}"

    async def ours() -> None:
        one = agent(url)
        await asyncio.gather(*(whole(one) for _ in range(n)))

    async def raw() -> None:
        await asyncio.gather(*(raw_turn(url + PATH) for _ in range(n)))

    cpu = measure(ours, raw, rounds=5)
    row(f"CPU, {n} concurrent runs of {tokens} tokens", "ms", cpu[0] * 1e3, cpu[1] * 1e3)


def imports(base: str) -> None:
    commands = {"ours": "from treadle import Agent, tool", "raw": "import msgspec, asyncio", "python": "pass"}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    # Compiled once, as `pip install` does it, also where this shell says not to keep what was compiled.
    kept = tempfile.TemporaryDirectory()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = kept.name
    for command in commands.values():
        subprocess.run([sys.executable, "-c", command], check=True, env=environment)
    for _ in range(15):
        for name, command in commands.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", command], check=True, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    seconds = {name: statistics.median(values) for name, values in cpu.items()}
    note = f"aim: at most 2; python itself takes {seconds['python'] * 1e3:.0f} ms of each"
    row(
        "CPU, `from treadle import Agent, tool` / `import msgspec, asyncio`",
        "ms",
        seconds["ours"] * 1e3,
        seconds["raw"] * 1e3,
        note,
    )
    say = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))"
    memory = [
        int(
            subprocess.run(
                [sys.executable, "-c", f"{commands[k]}; {say}"], check=True, capture_output=True, env=environment
            ).stdout
        )
        / 1024
        for k in ("ours", "raw")
    ]
    row("memory after the same imports", "MiB", *memory)


def encodings(base: str) -> None:
    encoding.main()


ALL = {
    "burst": burst,
    "drip": drip,
    "turns": turns,
    "parallel": parallel,
    "many": many,
    "imports": imports,
    "encoding": encodings,
}


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    chosen = sys.argv[1:] or list(ALL)
    print(
        f"Python {sys.version.split()[0]}, aiohttp {aiohttp.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| what | treadle | floor | ratio | |\n|---|---|---|---|---|")
    with server.running() as base:
        for name in chosen:
            ALL[name](base)


if __name__ == "__main__":
    main()
