"""Copying pending files out of a state folder into an ordinary one; S3 is not asked for anything."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from s3mount.background import reason_of
from s3mount.errors import LocalDiskError
from s3mount.refs import Key
from s3mount.spool.blobs.extents import Extents
from s3mount.spool.journal.changes import Change, Copy, Delete, Put

PARTIAL = ".partial"
"""Ends the name of a file of which only the changed bytes are here."""


class Exported(NamedTuple):
    """What became of one change: ``path`` where it was written, ``why`` it was not written whole."""

    key: Key
    path: Path | None
    why: str = ""


def export(
    changes: Iterable[Change], blobs: Path, target: Path, prefix: Key = ""
) -> Iterator[Exported]:
    """Write the files and directories that ``changes`` make below ``target``, which must be empty or not there.

    Keys become paths relative to ``prefix``. Each has its mode, times and (for root) owner. Raises
    LocalDiskError where ``target`` cannot be used; what goes wrong with one file is told with it.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise LocalDiskError(f"{target} is not empty; choose a new folder")
    except OSError as error:
        raise LocalDiskError(f"{target} cannot be written: {error.strerror}") from error
    folders: list[tuple[Path, Put]] = []
    for change in sorted(changes, key=lambda change: change.key):
        relative = change.key.removeprefix(prefix)
        if isinstance(change, Delete):
            yield Exported(change.key, None, "it is to be removed in S3")
        elif isinstance(change, Copy):
            yield Exported(change.key, None, f"its bytes are in S3, under {change.source.key!r}")
        elif not _is_path(relative):
            yield Exported(change.key, None, "its key is no path")
        else:
            try:
                yield _write(change, blobs, target, relative, folders)
            except Exception as error:  # noqa: BLE001  the other files are written
                yield Exported(change.key, None, _why(error))
    # Their times last, deepest first: every entry made in them has changed those.
    for path, change in reversed(folders):
        try:
            _dress(path, change)
        except Exception as error:  # noqa: BLE001  the other folders are dressed
            yield Exported(change.key, path, _why(error))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    return f"internal error: {reason_of(error)}"


def _is_path(relative: str) -> bool:
    parts = relative.removesuffix("/").split("/")
    return "\0" not in relative and not any(part in ("", ".", "..") for part in parts)


def _write(
    change: Put, blobs: Path, target: Path, relative: str, folders: list[tuple[Path, Put]]
) -> Exported:
    path = target / relative
    if not path.parent.resolve().is_relative_to(target.resolve()):
        return Exported(change.key, None, "a link leads out of the folder there")
    path.parent.mkdir(parents=True, exist_ok=True)
    if change.key.endswith("/"):
        path.mkdir(exist_ok=True)
        folders.append((path, change))
        return Exported(change.key, path)
    kind = stat.S_IFMT(change.attributes.mode) if change.attributes is not None else stat.S_IFREG
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        return Exported(change.key, None, "it is neither a file, a link nor a directory")
    blob = blobs / change.blob_id
    if change.blob_id and not blob.exists():
        return Exported(change.key, None, "its bytes are gone from the spool")
    if kind == stat.S_IFLNK:
        path.symlink_to(os.fsdecode(blob.read_bytes()))
        return Exported(change.key, path)
    missing = Extents(change.extents).missing(0, change.base_limit) if change.base else []
    why = ""
    if missing:
        absent = sum(stop - start for start, stop in missing)
        path = path.with_name(path.name + PARTIAL)
        why = f"{absent} of its {change.size} bytes are unchanged and only in S3; zeros stand for them"
    if change.blob_id:
        shutil.copyfile(blob, path)
    else:
        path.touch()
    _dress(path, change)
    return Exported(change.key, path, why)


def _dress(path: Path, change: Put) -> None:
    """Give ``path`` the attributes of ``change``. Raises OSError."""
    attributes = change.attributes
    if attributes is None:
        return
    if os.geteuid() == 0:
        os.chown(path, attributes.uid, attributes.gid)
    path.chmod(stat.S_IMODE(attributes.mode))
    os.utime(path, ns=(attributes.atime_ns, attributes.mtime_ns))
