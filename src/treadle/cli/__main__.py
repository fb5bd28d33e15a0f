"""`python -m treadle.cli`: the `treadle` command."""

from treadle.cli import main

main()
