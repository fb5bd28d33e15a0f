"""The command line. `main` is the `treadle` command; without the extra `cli` it says how to install it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the `treadle` command and exit with its code."""
    try:
        import click  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        print(
            "The treadle command needs the extra `cli`. In treadle's directory, install it with:\n\n    pip install '.[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from treadle.cli.main import treadle

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a model writes what no locale but UTF-8 can express
    treadle()
