"""The entries "." and ".." of a directory, which programs expect of readdir() and the kernel does not add."""

from __future__ import annotations

import pyfuse3
from pyfuse3 import EntryAttributes

DOTS = 2
"""The names of a directory follow after so many entries."""


def reply_dots(
    token: pyfuse3.ReaddirToken, start_id: int, own: EntryAttributes, parent: EntryAttributes
) -> bool:
    """Send those of the two that are due from ``start_id`` on; ``False`` when there is no room for them.

    The kernel counts no lookup for these two (``fuse_direntplus_link`` in Linux's fs/fuse/readdir.c).
    """
    entries = ((b".", own), (b"..", parent))
    return all(
        pyfuse3.readdir_reply(token, name, entry, number + 1)
        for number, (name, entry) in enumerate(entries)
        if number >= start_id
    )
