"""Open files, and the handles by which programs have them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import trio

from s3mount.cache.reader import ReadHandle
from s3mount.dedupe.matcher import DedupeMatcher
from s3mount.dedupe.read_checksums import ReadChecksums
from s3mount.refs import ContentRef, Key
from s3mount.spool.blobs.blobs import Blob
from s3mount.tree.node import Node


class OpenFile:
    """One node that somebody has open (or that is gone from the tree but still open).

    ``blob`` is set once it was written; ``reader`` while it is read through the cache; ``pinned`` once
    S3 has that version no more, so that the cache must keep it. ``refused``: what a writer needed of it could not
    be read, so that nothing was written.
    """

    __slots__ = (
        "_blob",
        "handles",
        "lock",
        "matcher",
        "node",
        "pinned",
        "places",
        "reader",
        "refused",
        "stream_at",
        "track",
        "writers",
        "wrote",
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self._blob: Blob | None = None
        self.reader: ReadHandle | None = None
        self.pinned: ContentRef | None = None
        self.places: tuple[Key, ...] = ()
        self.handles = 0
        self.writers = 0
        self.wrote = False
        self.refused = False
        self.stream_at = 0
        self.track: tuple[ContentRef, ReadChecksums | None] | None = None
        self.matcher: tuple[str, DedupeMatcher | None] | None = None
        self.lock = trio.Lock()

    @property
    def blob(self) -> Blob | None:
        """Where it is written; the blob counts who shows it."""
        return self._blob

    @blob.setter
    def blob(self, blob: Blob | None) -> None:
        if blob is not None:
            blob.open_files += 1
        if self._blob is not None:
            self._blob.open_files -= 1
        self._blob = blob

    def forget_reader(self) -> None:
        """It is to be read from another version from here on. Repeatable."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class OpenFiles:
    """All open files of one mount."""

    def __init__(self) -> None:
        self._by_inode: dict[int, OpenFile] = {}

    def of(self, node: Node) -> OpenFile | None:
        """The open file of a node, if it is open."""
        return self._by_inode.get(node.inode)

    def all(self) -> list[OpenFile]:
        """All of them, also of nodes that are gone from the tree."""
        return list(self._by_inode.values())

    def is_written(self, node: Node) -> bool:
        """Has somebody opened the file for writing?"""
        file = self._by_inode.get(node.inode)
        return file is not None and file.writers > 0

    def hold(self, node: Node) -> OpenFile:
        """The open file of a node, a new one where there is none: whoever asks takes a handle of it."""
        file = self._by_inode.get(node.inode)
        if file is None:
            file = self._by_inode[node.inode] = OpenFile(node)
        return file

    def let_go(self, file: OpenFile) -> None:
        """Nobody has it open any more. Repeatable."""
        self._by_inode.pop(file.node.inode, None)


@dataclass(slots=True)
class Handle:
    """One open(): ``flags`` as the kernel gave them, ``pid`` who it was (0: unknown)."""

    file: OpenFile
    flags: int
    pid: int = 0

    @property
    def writes(self) -> bool:
        """Was it opened for writing?"""
        return is_for_writing(self.flags)


def is_for_writing(flags: int) -> bool:
    """Do the flags of an open() ask for writing?"""
    return (flags & os.O_ACCMODE) != os.O_RDONLY


def must_be_in_place(node: Node) -> None:
    """Raises OSError (ESTALE) when somebody else deleted or replaced what ``node`` stood for.

    What was written to it would belong to no name. Linux answers ESTALE by looking the path up anew and
    trying again (path_resolution; ``LOOKUP_REVAL``), so that programs meet what is there now.
    """
    if node.is_replaced:
        raise OSError(errno.ESTALE, "somebody else deleted or replaced it")
