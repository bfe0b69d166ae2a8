"""Programs in namespaces of their own, as a container's; a test that needs them skips where they cannot be made.

A chroot and most containers refuse them, to root as well: whether they do is tried, once.
"""

from __future__ import annotations

import functools
import subprocess

import pytest


def in_namespaces(*options: str) -> list[str]:
    """The start of a command line that runs the rest in the namespaces that ``options`` of unshare(1) name.

    Skips the test, with the words of unshare, where it cannot make them.
    """
    refusal = _refusal(options)
    if refusal is not None:
        pytest.skip(f"namespaces cannot be made here: {refusal}")
    return ["unshare", *options, "--"]


def in_mount_namespace() -> list[str]:
    """``in_namespaces`` for one in which what is mounted stays unseen elsewhere."""
    return in_namespaces("--mount", "--propagation", "private")


@functools.cache
def _refusal(options: tuple[str, ...]) -> str | None:
    """What unshare says when it cannot make them."""
    try:
        done = subprocess.run(
            ["unshare", *options, "--", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except FileNotFoundError:
        return "unshare is not installed"
    return done.stderr.strip() if done.returncode else None
