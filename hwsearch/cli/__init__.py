"""The command line."""

from hwsearch.cli.commands import commands, main

__all__ = ["commands", "main"]
