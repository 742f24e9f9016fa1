"""The command line: one file a verb."""

# The verb `list` is a module of this package and hides the built-in here: nothing else stands in this file.
from etude.cli.app import VERBS, main

__all__ = ["VERBS", "main"]
