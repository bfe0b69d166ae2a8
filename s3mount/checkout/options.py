"""What is asked of a checkout."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path

import msgspec


class Changed(enum.Enum):
    """What becomes of a file that was edited here."""

    ASIDE = "aside"
    """It is kept beside the version, as NAME.orig."""
    KEEP = "keep"
    """It stays, and the version is not fetched."""
    OVERWRITE = "overwrite"
    """The version takes its place."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    ``delete``: remove what the manifest does not have. ``is_rehearsal``: change nothing below the folder,
    ask S3 for nothing. ``cache_dir`` holds the table of digests. ``accept_unproven``: what neither ETag nor
    checksum proves is taken as it came, and not fetched again. ``changed``: what becomes of a file that was edited
    here since it was checked out, where another one is to take its place.
    """

    cache_dir: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    delete: bool = False
    is_rehearsal: bool = False
    accept_unproven: bool = False
    changed: Changed = Changed.ASIDE


Tell = Callable[[str, str, int], None]
"""Told what a rehearsal would do: ``download``, ``delete``, ``keep aside`` or ``leave``, the path, and bytes."""
