"""`python -m app` is the command `jethook`."""

from app.cli import main

main()
