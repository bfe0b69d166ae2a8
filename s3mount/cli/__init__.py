"""The command line: one module for each command."""

from s3mount.cli.commands import main

__all__ = ["main"]
