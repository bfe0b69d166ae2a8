"""Checksums of contents that programs read, so that a copy of one is recognised while it is written.

Nothing is read for it: what programs read is added up as it passes (20 ms a GiB).
"""

from __future__ import annotations

from collections import OrderedDict

from awscrt import checksums as crt

from s3mount.refs import ContentRef
from s3mount.s3.checksums import BLOCK_BYTES, BLOCK_SHIFT

AHEAD_BYTES = 16 << 20
"""Reads further than this behind what was read so far are random ones, and not followed."""
PIECES_MAX = 32
TRACKS_MAX = 1024
"""Contents that are remembered while they were read in part: the kernel does not ask for the same pages again."""


class ReadChecksums:
    """What was read of one content. Pieces may come in any order, as the kernel reads ahead."""

    __slots__ = ("_high", "_pieces", "ref", "sums")

    def __init__(self, ref: ContentRef) -> None:
        self.ref = ref
        self.sums: dict[int, int] = {}
        self._pieces: dict[int, dict[int, tuple[int, int]]] = {}
        self._high = 0

    @property
    def blocks(self) -> int:
        """How many blocks the content has."""
        return (self.ref.size + BLOCK_BYTES - 1) >> BLOCK_SHIFT

    def sum_of(self, block: int) -> int | None:
        """The checksum of a block that was read."""
        return self.sums.get(block)

    def saw(self, offset: int, data: bytes) -> bool:
        """These bytes were read; are all blocks known now?"""
        stop = offset + len(data)
        if offset > self._high + AHEAD_BYTES:
            return False
        self._high = max(self._high, stop)
        view = memoryview(data)
        for block in range(offset >> BLOCK_SHIFT, ((stop - 1) >> BLOCK_SHIFT) + 1):
            if block in self.sums:
                continue
            start = block << BLOCK_SHIFT
            length = min(BLOCK_BYTES, self.ref.size - start)
            a, b = max(offset - start, 0), min(stop - start, length)
            crc = crt.crc64nvme(view[start + a - offset : start + b - offset], 0)
            if a or b < length:
                self._piece(block, a, b, crc, length)
            else:
                self.sums[block] = crc
                self._pieces.pop(block, None)
        return len(self.sums) == self.blocks

    def _piece(self, block: int, a: int, b: int, crc: int, length: int) -> None:
        pieces = self._pieces.setdefault(block, {})
        if len(pieces) < PIECES_MAX:
            pieces[a] = (b, crc)
        at = total = 0
        while at in pieces:
            stop, piece = pieces[at]
            total = crt.combine_crc64nvme(total, piece, stop - at)
            at = stop
        if at == length:
            self.sums[block] = total
            del self._pieces[block]


class RecentReads:
    """The contents that are being read, or were read in part."""

    def __init__(self) -> None:
        self._tracks: OrderedDict[ContentRef, ReadChecksums] = OrderedDict()

    def of(self, ref: ContentRef) -> ReadChecksums:
        """The track of ``ref``, from now on if there was none."""
        track = self._tracks.get(ref)
        if track is None:
            track = self._tracks[ref] = ReadChecksums(ref)
            if len(self._tracks) > TRACKS_MAX:
                self._tracks.popitem(last=False)
        else:
            self._tracks.move_to_end(ref)
        return track

    def done(self, ref: ContentRef) -> None:
        """``ref`` need not be followed any more. Repeatable."""
        self._tracks.pop(ref, None)

    def beginning_with(self, first: int) -> list[ReadChecksums]:
        """RecentReads whose first block has this checksum."""
        return [track for track in self._tracks.values() if track.sums.get(0) == first]
