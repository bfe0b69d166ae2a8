"""Which blocks of one content are local: one byte per block, so that C code does the looking."""

from __future__ import annotations

import zlib

from s3mount.config import GIB

MISSING = 0
PRESENT = 1
COMING = 2
"""Claimed by a fetch that is queued or under way; nobody else asks for it."""

BLOCK_SHIFT = 16
"""64 KiB: a random 16 KiB read costs one block, or two where it straddles, so at most 128 KiB."""
BLOCK_SHIFT_HUGE = 17
"""128 KiB from 16 GiB on: the map of the largest object (5 TiB) takes 42 MB instead of 84."""
HUGE_BYTES_MIN = 16 * GIB

GAP_BYTES_MAX = 256 * 1024
"""So much that is there already is fetched once more rather than by two requests: at 50 MB/s per
connection it costs 5 ms, a request on its own costs a round trip of 10 to 50."""

PAGE_BYTES = 4096
"""Files take whole pages of disk."""

SUM_BYTES = 8
"""A block's checksum in the file."""

_CLAIM = bytes.maketrans(bytes([MISSING]), bytes([COMING]))
_UNCLAIM = bytes.maketrans(bytes([COMING]), bytes([MISSING]))
_FILL = bytes.maketrans(bytes([COMING]), bytes([PRESENT]))
_EMPTY = bytes.maketrans(bytes([PRESENT]), bytes([MISSING]))


def shift_for(size_bytes: int) -> int:
    """Log2 of the block size used for content of this size."""
    return BLOCK_SHIFT if size_bytes < HUGE_BYTES_MIN else BLOCK_SHIFT_HUGE


def page_rounded(length: int) -> int:
    """``length`` rounded up to whole pages: what a file of it takes on disk."""
    return (length + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES


def sums_offset(size_bytes: int) -> int:
    """Where the checksums of the blocks lie in the file of a content of this size: behind it, on a page."""
    return page_rounded(size_bytes)


def file_bytes(size_bytes: int, shift: int) -> int:
    """How long the file of a content is with the checksums of its blocks."""
    return sums_offset(size_bytes) + SUM_BYTES * (((size_bytes - 1) >> shift) + 1)


def sums_room(size_bytes: int, shift: int) -> int:
    """What the checksums take on disk."""
    return page_rounded(file_bytes(size_bytes, shift) - sums_offset(size_bytes))


class BlockMap:
    """The state of every block of one content of ``size`` bytes (at least 1).

    ``states`` and ``shift`` are read directly where every microsecond counts;
    they are changed only here.
    """

    __slots__ = ("present_count", "shift", "size", "states")

    def __init__(self, size: int, shift: int) -> None:
        self.size = size
        self.shift = shift
        self.states = bytearray(((size - 1) >> shift) + 1)
        self.present_count = 0

    @property
    def whole(self) -> bool:
        """Every block is present."""
        return self.present_count == len(self.states)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The blocks (first, one behind the last) that hold the bytes ``[start, stop)``."""
        return start >> self.shift, ((stop - 1) >> self.shift) + 1

    def byte_start(self, block: int) -> int:
        """Offset of the block's first byte; the content's size for one behind the last block."""
        return min(block << self.shift, self.size)

    def covered(self, first: int, stop: int) -> bool:
        """All blocks of ``[first, stop)`` are present."""
        return self.states.count(PRESENT, first, stop) == stop - first

    def disk_bytes(self, first: int, stop: int) -> int:
        """What the blocks ``[first, stop)`` take on disk, in whole pages."""
        return page_rounded(self.byte_start(stop) - self.byte_start(first))

    def disk_bytes_in(self, state: int, first: int, stop: int) -> int:
        """What those of the blocks ``[first, stop)`` that are in this state take on disk."""
        taken = self.states.count(state, first, stop) << self.shift
        last = len(self.states) - 1
        if stop > last and self.states[last] == state:
            taken -= (1 << self.shift) - page_rounded(self.size - (last << self.shift))
        return taken

    def disk_bytes_held(self) -> int:
        """What the present and coming blocks take on disk."""
        count = len(self.states)
        return self.disk_bytes_in(PRESENT, 0, count) + self.disk_bytes_in(COMING, 0, count)

    def next_run(self, state: int, first: int, stop: int) -> tuple[int, int] | None:
        """The first run of blocks in this state within ``[first, stop)``."""
        begin = self.states.find(state, first, stop)
        if begin < 0:
            return None
        end = stop
        for other in (MISSING, PRESENT, COMING):
            if other != state:
                found = self.states.find(other, begin, end)
                if found >= 0:
                    end = found
        return begin, end

    def next_fetch(self, first: int, stop: int, length_max: int) -> tuple[int, int] | None:
        """The next blocks of ``[first, stop)`` for one request: the first missing ones.

        Present ones in between are asked for once more when that saves a request (GAP_BYTES_MAX).
        """
        run = self.next_run(MISSING, first, stop)
        if run is None:
            return None
        begin, end = run
        gap_max = GAP_BYTES_MAX >> self.shift
        while end < stop and end - begin < length_max:
            further = self.next_run(MISSING, end, stop)
            if further is None or further[0] - end > gap_max:
                break
            if self.states.find(COMING, end, further[0]) >= 0:
                break
            end = further[1]
        return begin, min(end, begin + length_max)

    def claim(self, first: int, stop: int) -> None:
        """Missing blocks become coming ones; others stay what they are."""
        self.states[first:stop] = self.states[first:stop].translate(_CLAIM)

    def unclaim(self, first: int, stop: int) -> None:
        """Coming blocks become missing again; present ones stay."""
        self.states[first:stop] = self.states[first:stop].translate(_UNCLAIM)

    def fill(self, first: int, stop: int) -> None:
        """Coming blocks become present. Missing ones do not: they were given up meanwhile."""
        self.present_count += self.states.count(COMING, first, stop)
        self.states[first:stop] = self.states[first:stop].translate(_FILL)

    def fill_all(self) -> None:
        """The whole content is there."""
        self.states[:] = bytes([PRESENT]) * len(self.states)
        self.present_count = len(self.states)

    def empty(self, first: int, stop: int) -> None:
        """Present blocks become missing; coming ones stay so."""
        self.present_count -= self.states.count(PRESENT, first, stop)
        self.states[first:stop] = self.states[first:stop].translate(_EMPTY)

    def forget_present(self) -> None:
        """All present blocks become missing; those that are coming stay so."""
        self.empty(0, len(self.states))

    def snapshot(self) -> bytes:
        """The present blocks as one byte each (1 present, 0 not)."""
        return bytes(self.states.translate(_UNCLAIM))

    def restore(self, snapshot: bytes) -> bool:
        """Take over a snapshot of the same geometry; False (and no change) when it is none."""
        if len(snapshot) != len(self.states) or snapshot.translate(None, b"\0\1"):
            return False
        self.states[:] = snapshot
        self.present_count = snapshot.count(PRESENT)
        return True


def pack(snapshot: bytes) -> bytes:
    """A snapshot as it is stored; runs shrink to next to nothing."""
    return zlib.compress(snapshot, 1)


def unpack(packed: bytes) -> bytes:
    """The snapshot that ``pack`` was given; empty when it is damaged."""
    try:
        return zlib.decompress(packed)
    except zlib.error:
        return b""


def merged(one: bytes, other: bytes) -> bytes:
    """The union of two snapshots of the same geometry."""
    if len(one) != len(other):
        return one
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little")
