"""A disk that loses in a power cut what was not flushed: the state folder as it may be found afterwards.

Flushed is what ``os.fsync`` and ``os.fdatasync`` were called for: the bytes of a file, the entries
of a folder. SQLite's own flushes pass by Python, so they are inferred from what it writes, by its
rules for ``synchronous=NORMAL``: when the database file changes there was a checkpoint, which flushes the
log before it and the database after it; when the log begins anew its header is flushed first.
All else may be lost: each file's bytes block by block, each entry that came or went by itself. Of the
journal's log what was not flushed is lost as a whole, or there as a whole: the kernel may have written it
back by itself, and not the blobs that were written before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

BLOCK_BYTES = 512
WRITTEN_BACK_SHARE = 0.3
"""So often the kernel wrote the journal's log back in time."""
JOURNAL = "journal.sqlite"
LOG = f"{JOURNAL}-wal"
LOG_HEADER_BYTES = 32
PUTS = "puts.sqlite"
"""Nothing that is promised here depends on the list of what was put: it may be gone as a whole."""
REBUILT = "-shm"
"""SQLite makes its index of the log anew where nobody has the database open."""


@dataclass
class Inode:
    """A file: ``flushed`` are the bytes that survive for certain. ``held`` keeps its number from being given again."""

    held: int
    flushed: bytes = b""


@dataclass
class Folder:
    """A directory: its entries that survive for certain."""

    flushed: dict[str, Inode | Folder] = field(default_factory=dict)


class Disk:
    """The state folder of one life after another. ``begin`` is called with the folder of each."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._root = Path()
        self._folders: dict[Path, Folder] = {}
        self._inodes: dict[int, Inode] = {}
        self._log_header = b""
        self._log: Inode | None = None

    # ------------------------------------------------------------------ watching

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every flush meanwhile; nothing is really flushed."""
        with mock.patch("os.fsync", self._flush), mock.patch("os.fdatasync", self._flush):
            yield

    def close(self) -> None:
        """Let all files go."""
        for inode in self._inodes.values():
            os.close(inode.held)
        self._inodes.clear()

    def begin(self, root: Path, *, is_new: bool) -> None:
        """The folder of the next life. If it ``is_new`` nothing in it is flushed, else all that is there."""
        self.close()
        self._root = root
        self._folders.clear()
        self._log_header = b""
        self._log = None
        if not is_new:
            self._flush_all(root)
            self._log = self._inode(root / LOG) if (root / LOG).exists() else None

    def follow(self, root: Path) -> None:
        """After a kill ``root`` is the folder's copy: what was not flushed before is not flushed now."""
        for path in sorted(self._root.rglob("*")):
            if path.is_file():
                inode = self._inode(path)
                del self._inodes[os.fstat(inode.held).st_ino]
                os.close(inode.held)
                inode.held = os.open(root / path.relative_to(self._root), os.O_RDONLY)
                self._inodes[os.fstat(inode.held).st_ino] = inode
        self._folders = {
            root / path.relative_to(self._root): folder for path, folder in self._folders.items()
        }
        self._root = root

    def _flush_all(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self._inode(path).flushed = path.read_bytes()
        for path in [folder, *(each for each in folder.rglob("*") if each.is_dir())]:
            self._flush_entries(path)

    def _folder(self, path: Path) -> Folder:
        return self._folders.setdefault(path, Folder())

    def _inode(self, path: Path) -> Inode:
        return self._inode_of(os.open(path, os.O_RDONLY))

    def _inode_of(self, descriptor: int) -> Inode:
        """The file that is open there. The descriptor is taken over."""
        number = os.fstat(descriptor).st_ino
        known = self._inodes.get(number)
        if known is not None:
            os.close(descriptor)
            return known
        self._inodes[number] = Inode(descriptor)
        return self._inodes[number]

    def _flush(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            if path == self._root or self._root in path.parents:
                self._flush_entries(path)
            return
        if self._root in path.parents:
            # Opened anew: that one may be for writing only.
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            self._flush_bytes(self._inode_of(own))

    def _flush_entries(self, path: Path) -> None:
        self._folder(path).flushed = {
            each.name: self._folder(path / each.name)
            if each.is_dir()
            else self._inode(path / each.name)
            for each in os.scandir(path)
        }

    @staticmethod
    def _flush_bytes(inode: Inode) -> None:
        inode.flushed = _content(inode.held)

    def committed(self) -> None:
        """A transaction ended: did SQLite flush something meanwhile? See above."""
        database, log = self._root / JOURNAL, self._root / LOG
        if not database.exists():
            return
        of_database = self._inode(database)
        of_log = self._inode(log) if log.exists() else None
        header = b"" if of_log is None else os.pread(of_log.held, LOG_HEADER_BYTES, 0)
        if _content(of_database.held) != of_database.flushed:
            self._flush_bytes(of_database)
            # Also one that is gone by now: who closes the database last checkpoints and removes it.
            for each in (self._log, of_log):
                if each is not None:
                    self._flush_bytes(each)
        elif of_log is not None and header != self._log_header:
            of_log.flushed = header + of_log.flushed[LOG_HEADER_BYTES:]
        self._log_header = header
        self._log = of_log or self._log

    # ------------------------------------------------------------------ the cut

    def cut_into(self, target: Path) -> None:
        """Make ``target`` what the power cut leaves of the folder."""
        self.committed()
        self._leave(self._root, self._folder(self._root), target)

    def _leave(self, path: Path, folder: Folder | None, target: Path) -> None:
        target.mkdir()
        flushed = folder.flushed if folder is not None else {}
        there = {each.name for each in os.scandir(path)} if path.is_dir() else set()
        for name in sorted({*flushed, *there}):
            if name.endswith(REBUILT) or name.startswith(PUTS):
                continue
            kept = flushed.get(name)
            if (path / name).is_dir():
                if kept is not None or self._is_kept():
                    self._leave(path / name, self._folders.get(path / name), target / name)
                continue
            inode = self._inode(path / name) if name in there else None
            if inode is not kept:
                # It came, went or was exchanged after the last flush of the folder.
                inode = inode if self._is_kept() else kept  # type: ignore[assignment]
            if inode is not None:
                left = self._left_of_log(inode) if name == LOG else self._left_of(inode)
                (target / name).write_bytes(left)

    def _is_kept(self) -> bool:
        return self._rng.random() < 0.5

    def _left_of_log(self, inode: Inode) -> bytes:
        is_written_back = WRITTEN_BACK_SHARE and self._rng.random() < WRITTEN_BACK_SHARE
        return _content(inode.held) if is_written_back else inode.flushed

    def _left_of(self, inode: Inode) -> bytes:
        """The bytes found after the cut: each block as flushed or as written last."""
        now, flushed = _content(inode.held), inode.flushed
        fate = self._rng.choice(("flushed", "now", "mixed"))
        if fate == "now" or now == flushed:
            return now
        if fate == "flushed":
            return flushed
        size = self._rng.choice((len(now), len(flushed)))
        left = bytearray(size)
        for at in range(0, size, BLOCK_BYTES):
            block = self._rng.choice((now, flushed))[at : min(at + BLOCK_BYTES, size)]
            left[at : at + len(block)] = block
        return bytes(left)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
