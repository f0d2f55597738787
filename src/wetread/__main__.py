"""`python -m wetread` is the `wetread` command."""

from wetread.cli import main

main()
