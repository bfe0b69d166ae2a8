"""The state of a folder when it last held a whole manifest: where it is still so, nothing else need be read.

A file beside the table of digests. It is believed for one manifest (by its bytes) and selection, as long as each
file has the inode, size and times that it had: any change of bytes, mode or name changes the ctime.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from s3mount.checkout.folders import Folders
from s3mount.checkout.paths import native, split

FOLDER = "checkouts"
"""Below s3mount's cache folder."""
FILES_MAX = 200_000
"""Of more files no picture is kept: about 60 bytes each on disk, 300 in memory while it is made."""


class FolderPicture(msgspec.Struct, frozen=True, array_like=True):
    """The files of one folder: equal places belong together."""

    path: str
    names: list[str]
    sizes: list[int]
    mtimes_ns: list[int]
    ctimes_ns: list[int]
    inodes: list[int]


class FolderState(msgspec.Struct, frozen=True):
    """A folder that held all that ``key`` stands for: manifest and selection."""

    key: str
    files: int
    size_bytes: int
    left_out: int
    folders: list[FolderPicture]

    def is_true_of(self, root: int) -> bool:
        """Does the open folder still look like this? No symbolic link is followed."""
        folders = Folders(root)
        try:
            return all(_looks_like(folders, each) for each in self.folders)
        except OSError:
            return False
        finally:
            folders.close()


def _looks_like(folders: Folders, wanted: FolderPicture) -> bool:
    where = folders.find(wanted.path)
    if where is None:
        return False
    look = os.stat
    for name, size, mtime_ns, ctime_ns, inode in zip(
        wanted.names,
        wanted.sizes,
        wanted.mtimes_ns,
        wanted.ctimes_ns,
        wanted.inodes,
        strict=True,
    ):
        found = look(native(name), dir_fd=where, follow_symlinks=False)
        if (
            found.st_ctime_ns != ctime_ns
            or found.st_mtime_ns != mtime_ns
            or found.st_size != size
            or found.st_ino != inode
        ):
            return False
    return True


class Notes:
    """Collects what a picture is made of, while a checkout goes on; gives up above FILES_MAX.

    Planning and working may note at the same time, from two threads.
    """

    def __init__(self) -> None:
        self._files: list[tuple[str, int, int, int, int]] | None = []
        self._folders: set[str] = set()

    def file(self, path: str, found: os.stat_result) -> None:
        """The file at ``path`` is right, and this is its stat."""
        files = self._files
        if files is None:
            return
        files.append((path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
        if len(files) > FILES_MAX:
            self._files = None

    def folder(self, path: str) -> None:
        """There is to be a folder, whatever is in it."""
        self._folders.add(path)

    def give_up(self) -> None:
        """What was checked out can change without the manifest's changing: no picture can be believed."""
        self._files = None

    def picture(self, key: str, files: int, size_bytes: int, left_out: int) -> FolderState | None:
        """The picture, ``None`` where there is none."""
        if self._files is None or len(self._files) != files:
            return None
        found: dict[str, FolderPicture] = {
            path: FolderPicture(path, [], [], [], [], []) for path in self._folders
        }
        for path, size, mtime_ns, ctime_ns, inode in self._files:
            folder, name = split(path)
            into = found.get(folder)
            if into is None:
                into = found[folder] = FolderPicture(folder, [], [], [], [], [])
            into.names.append(name)
            into.sizes.append(size)
            into.mtimes_ns.append(mtime_ns)
            into.ctimes_ns.append(ctime_ns)
            into.inodes.append(inode)
        return FolderState(key, files, size_bytes, left_out, list(found.values()))


def place_of(cache_dir: Path, folder: Path, suffix: str) -> Path:
    """Where the cache keeps what is known of ``folder``."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return cache_dir / FOLDER / f"{name}.{suffix}"


def load(place: Path, key: str) -> FolderState | None:
    """The picture of what ``key`` stands for, if that is what was last checked out there."""
    try:
        found = msgspec.msgpack.decode(place.read_bytes(), type=FolderState)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.key == key else None


def save(place: Path, picture: FolderState | None) -> None:
    """Keep a picture in place of an earlier one; without a place for it the next checkout looks closer."""
    with contextlib.suppress(OSError):
        if picture is None:
            place.unlink(missing_ok=True)
            return
        fresh = place.with_suffix(f".new{os.getpid()}")
        fresh.write_bytes(msgspec.msgpack.encode(picture))
        fresh.replace(place)
