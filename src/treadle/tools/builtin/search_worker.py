"""A program that finds the lines of its input that match: what a search runs where there is no ripgrep.

    python -I -S -c SOURCE PATTERN FLAGS SECONDS < text

Python's `re` cannot be interrupted and holds up every thread of its process, so a pattern that takes for ever (`(a+)+$`) runs here,
where it can be killed. Writes `LINE:BYTE:OFFSET:` for the first match in each line as `rg --line-number --column --byte-offset`
does: the line and the byte in it from 1, where the line begins from 0. Ends with 2 and the reason if the pattern is not valid.
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
    count = offset = 0
    for number, data in enumerate(sys.stdin.buffer, 1):
        line = data.decode("utf-8", "replace").removesuffix("\n")
        if match := search(line):
            sys.stdout.write(f"{number}:{len(line[: match.start()].encode()) + 1}:{offset}:\n")
            count += 1
            if count == MAX_LINES:
                break
        offset += len(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
