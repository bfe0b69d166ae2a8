"""The command line: one module for each command."""

from s3mount.cli.main import main

__all__ = ["main"]
