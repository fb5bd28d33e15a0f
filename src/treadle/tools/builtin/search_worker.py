"""A program that finds the lines of its input that match: what a search runs where there is no ripgrep.

    python -I -S search_worker.py PATTERN FLAGS SECONDS < text

Python's `re` cannot be interrupted and holds up every thread of its process, so a pattern that takes for ever (`(a+)+$`) runs here,
where it can be killed. Writes `LINE:BYTE:` for the first match in each line, both from 1, as `rg --line-number --column` does.
Ends with 2 and the reason if the pattern is not valid.
"""

import re
import signal
import sys
import warnings

MAX_LINES = 20_000
"""Lines told of; after that it ends."""


def main(pattern: str, flags: str, seconds: str) -> int:
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds))  # should the program that started it die without killing it
    warnings.simplefilter("error")  # `[[a]`, whose meaning is to change
    try:
        search = re.compile(pattern, re.IGNORECASE if "i" in flags else 0).search
    except (re.error, Warning, RecursionError, OverflowError) as error:
        sys.stderr.write(str(error))
        return 2
    lines = sys.stdin.buffer.read().decode("utf-8", "replace").split("\n")
    found: list[str] = []
    for number, line in enumerate(lines[:-1], 1):
        if match := search(line):
            found.append(f"{number}:{len(line[: match.start()].encode()) + 1}:\n")
            if len(found) == MAX_LINES:
                break
    sys.stdout.write("".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
