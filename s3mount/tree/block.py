"""What LIST told of many entries of one directory, packed: about 60 bytes each, where an inode of its own takes 700.

An entry is unpacked when somebody does more than look at it. Its inode number is its block's first number and
its place in the block, so nothing has to be kept for it by number.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from s3mount.refs import ContentRef, ETag, Key, ObjectInfo

if TYPE_CHECKING:
    from s3mount.tree.node import Node

DIRECTORY = 1
GONE = 2
"""It is not there any more, or has got another content."""
UNPACKED = 4
"""There is a node for it, which is what counts."""
HELD_MAX = 255
"""From so many references of the kernel on they are not counted any more."""
_MD5 = re.compile("[0-9a-f]{32}").fullmatch
_OVERHEAD_BYTES = 700
"""About what the objects of one block take, however few entries it has."""


class Block:
    """Entries in the order of their names; ``None`` in place of an object stands for a directory.

    ``left`` counts those that are there and have no node. All names lie from ``first`` to ``last``.
    """

    __slots__ = (
        "_etags",
        "_hint",
        "_names",
        "_offsets",
        "base",
        "directory",
        "first",
        "flags",
        "held",
        "last",
        "last_modified_ns",
        "left",
        "sizes",
    )

    def __init__(
        self, directory: Node, base: int, entries: Sequence[tuple[str, ObjectInfo | None]]
    ) -> None:
        self.directory = directory
        self.base = base
        encoded = [name.encode("utf-8", "surrogatepass") for name, _ in entries]
        self._names = b"".join(encoded)
        self.first, self.last = (encoded[0], encoded[-1]) if encoded else (b"", b"")
        self._offsets = array("I", [0])
        end = 0
        for name in encoded:
            end += len(name)
            self._offsets.append(end)
        self.sizes = array("Q", [0 if info is None else info.size for _, info in entries])
        self.last_modified_ns = array(
            "q", [0 if info is None else info.last_modified_ns for _, info in entries]
        )
        self.flags = bytearray(DIRECTORY if info is None else 0 for _, info in entries)
        self.held = bytearray(len(entries))
        self.left = len(entries)
        self._etags = _packed_etags([None if info is None else info.etag for _, info in entries])
        self._hint = -1

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        etags = len(self._etags)
        if isinstance(self._etags, tuple):
            etags = sum(map(sys.getsizeof, self._etags)) + 8 * etags
        return _OVERHEAD_BYTES + len(self._names) + 22 * len(self) + etags

    def _raw(self, index: int) -> bytes:
        return self._names[self._offsets[index] : self._offsets[index + 1]]

    def name(self, index: int) -> str:
        """The name of an entry."""
        return self._raw(index).decode("utf-8", "surrogatepass")

    def find(self, name: str) -> int:
        """The place of ``name``, gone or not; -1 where it never was. Quickest for one after the other."""
        raw = name.encode("utf-8", "surrogatepass")
        low, high = 0, len(self.flags)
        guess = self._hint + 1
        if guess < high and self._raw(guess) == raw:
            self._hint = guess
            return guess
        while low < high:
            middle = (low + high) // 2
            if self._raw(middle) < raw:
                low = middle + 1
            else:
                high = middle
        if low == len(self.flags) or self._raw(low) != raw:
            return -1
        self._hint = low
        return low

    def present(self) -> Iterator[int]:
        """The places of entries that are there and have no node."""
        return (index for index, flag in enumerate(self.flags) if not flag & (GONE | UNPACKED))

    def held_directories(self) -> Iterator[int]:
        """The places of directories without a node that the kernel has references to."""
        return (
            index for index in self.present() if self.held[index] and self.flags[index] & DIRECTORY
        )

    def is_directory(self, index: int) -> bool:
        """Is the entry a directory?"""
        return bool(self.flags[index] & DIRECTORY)

    def etag(self, index: int) -> ETag:
        """The ETag of a file."""
        if isinstance(self._etags, tuple):
            return self._etags[index]
        return self._etags[16 * index : 16 * index + 16].hex()

    def content(self, index: int, prefix: Key) -> ContentRef:
        """The bytes of a file in the directory whose key is ``prefix``."""
        return ContentRef(prefix + self.name(index), self.etag(index), self.sizes[index])

    def is_same(self, index: int, info: ObjectInfo) -> bool:
        """Has the file the content that ``info`` tells of?"""
        return (
            not self.flags[index] & DIRECTORY
            and self.sizes[index] == info.size
            and self.etag(index) == info.etag
        )

    def hold(self, index: int) -> None:
        """The kernel got one more reference to it."""
        if self.held[index] < HELD_MAX:
            self.held[index] += 1

    def forget(self, index: int, count: int) -> None:
        """The kernel dropped ``count`` references."""
        if self.held[index] < HELD_MAX:
            self.held[index] = max(0, self.held[index] - count)


def _packed_etags(etags: list[ETag | None]) -> bytes | tuple[ETag, ...]:
    """16 bytes each where all are MD5s (or ``None``: a directory's), else as they are."""
    if all(etag is None or _MD5(etag) for etag in etags):
        return b"".join(bytes(16) if etag is None else bytes.fromhex(etag) for etag in etags)
    return tuple(etag or "" for etag in etags)
