"""What is asked of a checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    ``delete``: remove what the manifest does not have. ``is_rehearsal``: change nothing below the folder,
    ask S3 for nothing. ``cache_dir`` holds the table of digests. ``accept_unproven``: what neither ETag nor
    checksum proves is taken as it came, and not fetched again.
    """

    cache_dir: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    delete: bool = False
    is_rehearsal: bool = False
    accept_unproven: bool = False


Tell = Callable[[str, str, int], None]
"""Told what a rehearsal would do: ``download`` or ``delete``, the path, and bytes."""
