"""`python -m weightsearch` is the command `weightsearch`."""

from weightsearch.cli import main

main()
