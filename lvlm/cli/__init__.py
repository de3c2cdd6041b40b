"""The command line, `lvlm`: one module for each group of commands."""

from lvlm.cli.app import app, main

__all__ = ["app", "main"]
