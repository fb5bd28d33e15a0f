"""`python -m treadle`: the `treadle` command."""

from treadle.cli import main

main()
