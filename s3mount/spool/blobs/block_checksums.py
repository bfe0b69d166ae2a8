"""Checksums of a blob: one CRC64NVME for each of its blocks, computed as the bytes come in.

They cover the blob's file as it lies on the disk, holes included, whether a hole stands for zeros or
for bytes of the base. So whatever is read from the file later can be held against what was written.
A MiB written costs 21 us on top of the 50 of the write itself and 700 of its way through the kernel.
"""

from __future__ import annotations

import base64
import errno
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from awscrt import checksums as crt

from s3mount.refs import Checksum
from s3mount.s3.checksums import BLOCK_BYTES, BLOCK_SHIFT

CHUNK_BLOCKS = 512
CHUNK_BYTES = CHUNK_BLOCKS * BLOCK_BYTES
"""What one journal row tells of: 64 MiB of a blob in 8 KiB."""

_ZEROS = memoryview(bytes(BLOCK_BYTES))
_HOLE_SUMS = array("Q", [crt.crc64nvme(_ZEROS, 0)] * CHUNK_BLOCKS)
_FULL_LENGTHS = array("Q", [BLOCK_BYTES + 1] * CHUNK_BLOCKS)
_UNKNOWN = -1
_STORED_UNKNOWN = 1 << 40
_NONE: set[int] = set()

Read = Callable[[int, int], memoryview]
"""``read(offset, length)`` of the blob's file, up to a block: fewer bytes only at its end. What it
returns is used before it is called again. Raises OSError."""


class Sum(NamedTuple):
    """A block's checksum: ``crc`` of its first ``length`` bytes; the rest of it is zero."""

    crc: int
    length: int


class DamagedBlockError(OSError):
    """The disk gave other bytes back than were written to it."""

    def __init__(self, offset: int) -> None:
        super().__init__(errno.EIO, f"the disk returned other bytes at {offset} than were written")
        self.offset = offset


class BlockSums:
    """The checksums of one blob. No I/O of its own: what must be read again comes by a ``Read``.

    A block is *unknown* when it was changed and nobody noted how (a kill came before it was journalled, or
    part of an unknown block was written). *Settled* blocks have their checksum in the journal: before
    one of them changes ``on_unsettled`` is called, once, so that the journal can say that it is
    not to be trusted any more. ``has_unknown``: some were unknown when the blob was taken over from an earlier run.
    """

    __slots__ = (
        "_chunks",
        "_dirty",
        "_row",
        "_settled",
        "_stored",
        "blob_id",
        "has_unknown",
        "is_unsettled",
        "on_unsettled",
    )

    def __init__(self) -> None:
        # Of 100,000 pending files most are small and closed: theirs is the row alone.
        self._row = b""
        self._chunks: dict[int, array[int]] | None = None
        self._dirty: set[int] = _NONE
        self._stored: set[int] = _NONE
        self._settled = 0
        self.has_unknown = False
        self.is_unsettled = False
        self.blob_id = ""
        self.on_unsettled: Callable[[str], None] = _nobody

    def _thawed(self) -> dict[int, array[int]]:
        """The chunks, in a form that can be changed."""
        if self._chunks is None:
            self._chunks = {0: _chunk_of(self._row)} if self._row else {}
            self._dirty = set(self._chunks)
            self._row = b""
        return self._chunks

    # ----------------------------------------------------------------- changing

    def prepare(self, offset: int, data: memoryview, size: int, read: Read) -> list[Sum]:
        """The sums of the blocks that ``data`` at ``offset`` touches, once it is written; ``size``: before.

        To be called before the bytes are written, and followed by ``commit`` or ``lose``. Raises OSError.
        """
        stop = offset + len(data)
        first, last = offset >> BLOCK_SHIFT, (stop - 1) >> BLOCK_SHIFT
        if first < self._settled:
            self._unsettle()
        crc64 = crt.crc64nvme
        sums = []
        for block in range(first, last + 1):
            start = block << BLOCK_SHIFT
            a, b = max(offset - start, 0), min(stop - start, BLOCK_BYTES)
            piece = data[start + a - offset : start + b - offset]
            crc, length = self.get(block)
            if length == _UNKNOWN and not (a == 0 and b >= min(size - start, BLOCK_BYTES)):
                sums.append(Sum(0, _UNKNOWN))
            elif a == 0 and b >= length:
                sums.append(Sum(crc64(piece, 0), b))
            elif a >= length:
                if a > length:
                    crc = crc64(_ZEROS[: a - length], crc)
                sums.append(Sum(crc64(piece, crc), b))
            else:
                sums.append(_replaced(Sum(crc, length), piece, a, read(start + a, b - a)))
        return sums

    def commit(self, offset: int, sums: list[Sum]) -> None:
        """What ``prepare`` foretold is written."""
        block = offset >> BLOCK_SHIFT
        for crc, length in sums:
            self._put(block, crc, length)
            block += 1

    def lose(self, offset: int, stop: int) -> None:
        """Something between these offsets was written, nobody knows how much of it."""
        for block in range(offset >> BLOCK_SHIFT, ((stop - 1) >> BLOCK_SHIFT) + 1):
            self._put(block, 0, _UNKNOWN)

    def cut(self, size: int, read: Read) -> None:
        """The blob is about to be cut to ``size``. Raises DamagedBlockError and OSError."""
        block, keep = size >> BLOCK_SHIFT, size & (BLOCK_BYTES - 1)
        if block < self._settled:
            self._unsettle()
        crc, length = self.get(block)
        if keep and keep < length:
            old = _read_block(block << BLOCK_SHIFT, crc, length, read)
            self._put(block, crt.crc64nvme(old[:keep], 0), keep)
        blocks = block + bool(keep)
        chunks = self._thawed()
        for number in [n for n in chunks if (n + 1) * CHUNK_BLOCKS > blocks]:
            left = max(blocks - number * CHUNK_BLOCKS, 0)
            if not left:
                del chunks[number]
                self._dirty.add(number)
            elif len(chunks[number]) > 2 * left:
                del chunks[number][2 * left :]
                self._dirty.add(number)

    def copy(self) -> BlockSums:
        """The same sums, for a copy of the file."""
        twin = BlockSums()
        chunks = self._thawed()
        twin._chunks = {number: array("Q", chunk) for number, chunk in chunks.items()}
        twin._dirty = set(chunks)
        twin.has_unknown = self.has_unknown
        return twin

    def _put(self, block: int, crc: int, length: int) -> None:
        number, index = divmod(block, CHUNK_BLOCKS)
        chunks = self._thawed()
        chunk = chunks.get(number)
        if chunk is None:
            chunk = chunks[number] = array("Q")
        if len(chunk) <= 2 * index:
            chunk.frombytes(bytes(16 * (index + 1) - 8 * len(chunk)))
        chunk[2 * index] = crc
        chunk[2 * index + 1] = _STORED_UNKNOWN if length == _UNKNOWN else length + 1
        self._dirty.add(number)

    def _unsettle(self) -> None:
        self.on_unsettled(self.blob_id)
        self.is_unsettled = True
        self._settled = 0

    # ------------------------------------------------------------------ looking

    def get(self, block: int) -> Sum:
        """The sum of a block; its length is negative where it is unknown."""
        number, index = divmod(block, CHUNK_BLOCKS)
        chunk = self._thawed().get(number)
        stored = chunk[2 * index + 1] if chunk is not None and len(chunk) > 2 * index else 0
        if stored and chunk is not None:
            return Sum(chunk[2 * index], _UNKNOWN if stored == _STORED_UNKNOWN else stored - 1)
        return Sum(0, 0)

    def touches(self, start: int, stop: int) -> bool:
        """Is anything written in the blocks of this range? Of a hole not every block is looked at."""
        chunks = self._thawed()
        first, last = start >> BLOCK_SHIFT, (stop - 1) >> BLOCK_SHIFT
        for number in range(first // CHUNK_BLOCKS, last // CHUNK_BLOCKS + 1):
            chunk = chunks.get(number)
            if chunk is not None:
                begin = number * CHUNK_BLOCKS
                a, b = max(first - begin, 0), min(last - begin, CHUNK_BLOCKS - 1) + 1
                if any(chunk[2 * a + 1 : 2 * b : 2]):
                    return True
        return False

    def of_range(self, start: int, stop: int, read: Read) -> Checksum | None:
        """The CRC64NVME of the bytes from ``start`` to ``stop``; ``None`` when some are unknown.

        Only where the range begins or ends inside a block that reaches further must it be read.
        Raises DamagedBlockError and OSError.
        """
        total = 0
        for block in range(start >> BLOCK_SHIFT, ((stop - 1) >> BLOCK_SHIFT) + 1):
            at = block << BLOCK_SHIFT
            a, b = max(start - at, 0), min(stop - at, BLOCK_BYTES)
            crc, length = self.get(block)
            if length == _UNKNOWN:
                return None
            if a or b < length:
                whole = _read_block(at, crc, length, read)[a:b]
                crc, length = crt.crc64nvme(whole, 0), len(whole)
                b -= a
            if length < b:
                crc = crt.crc64nvme(_ZEROS[: b - length], crc)
            total = crt.combine_crc64nvme(total, crc, b)
        return as_checksum(total)

    def crc_of_block(self, block: int) -> int | None:
        """The CRC64NVME of a block that is written to its end; ``None`` where it is unknown."""
        crc, length = self.get(block)
        return crc if length == BLOCK_BYTES else None

    def of_whole(self, size: int) -> array[int] | None:
        """The CRC64NVME of each block of a file of ``size`` bytes; ``None`` where one is unknown.

        Chunks that are written to their end, and those of a hole, are taken whole: a TiB of either takes
        50 ms, where looking at each block takes half a minute (bench/micro/hole_sums.py).
        """
        chunks = self._thawed()
        blocks = (size + BLOCK_BYTES - 1) >> BLOCK_SHIFT
        sums = array("Q")
        hole, full = _HOLE_SUMS[:CHUNK_BLOCKS], _FULL_LENGTHS[:CHUNK_BLOCKS]
        for first in range(0, blocks, CHUNK_BLOCKS):
            chunk = chunks.get(first // CHUNK_BLOCKS)
            is_within = (first + CHUNK_BLOCKS) << BLOCK_SHIFT <= size
            if is_within and chunk is None:
                sums.extend(hole)
            elif is_within and chunk is not None and chunk[1::2] == full:
                sums.extend(chunk[0::2])
            else:
                for block in range(first, min(first + CHUNK_BLOCKS, blocks)):
                    crc = self._padded(block, size)
                    if crc is None:
                        return None
                    sums.append(crc)
        return sums

    def _padded(self, block: int, size: int) -> int | None:
        """The CRC64NVME of a block up to its end, or that of the file; what is not written of it is zero."""
        crc, length = self.get(block)
        if length == _UNKNOWN:
            return None
        missing = min(BLOCK_BYTES, size - (block << BLOCK_SHIFT)) - length
        return crt.crc64nvme(_ZEROS[:missing], crc) if missing > 0 else crc

    def check(self, start: int, stop: int, read: Read) -> None:
        """Read the blocks of a range. Raises DamagedBlockError for the first that is not what was written.

        Behind what was written of a block there must be nothing but zeros, up to ``stop``.
        """
        for block in range(start >> BLOCK_SHIFT, ((stop - 1) >> BLOCK_SHIFT) + 1):
            crc, length = self.get(block)
            if length == _UNKNOWN:
                continue
            at = block << BLOCK_SHIFT
            _read_block(at, crc, length, read)
            rest = min(stop - at, BLOCK_BYTES) - length
            if rest > 0 and bytes(read(at + length, rest)).strip(b"\0"):
                raise DamagedBlockError(at)

    # ------------------------------------------------------------------- storing

    @property
    def _fits_row(self) -> bool:
        """Is there so little that it goes into the change's own row?"""
        chunks = self._chunks
        return chunks is None or not chunks or (len(chunks) == 1 and 0 in chunks)

    def row(self) -> bytes:
        """All sums, when they fit into the change's own row."""
        if self._chunks is None:
            return self._row
        return self._chunks[0].tobytes() if self._chunks and self._fits_row else b""

    def dirty_rows(self) -> list[tuple[int, bytes]]:
        """What changed since ``settled``, as (chunk number, its sums), for those that do not fit one row."""
        chunks = self._chunks
        if chunks is None or self._fits_row:
            return [(number, b"") for number in self._stored]
        return [
            (number, chunks[number].tobytes() if number in chunks else b"")
            for number in sorted(self._dirty)
        ]

    def settled(self, size: int, row: bytes) -> None:
        """The journal has the sums of the blob as it is now, ``size`` bytes long, ``row`` among them."""
        if self._fits_row:
            # It is not in rows of its own yet: all of it goes there when it grows.
            self._row, self._chunks, self._dirty, self._stored = row, None, _NONE, _NONE
        else:
            self._stored = self._stored | self._dirty
            self._dirty = set()
        self._settled = (size + BLOCK_BYTES - 1) >> BLOCK_SHIFT
        self.is_unsettled = False

    def recover(self, rows: dict[int, bytes], settled: int) -> None:
        """Take over what was stored when the file had ``settled`` bytes; ``mark_unknown`` does the rest."""
        if rows.keys() == {0}:
            self._row = rows[0]
        elif rows:
            self._chunks = {number: _chunk_of(row) for number, row in rows.items() if row}
            self._stored = set(rows)
            self._dirty = set(rows) if self._fits_row else set()
        self._settled = (settled + BLOCK_BYTES - 1) >> BLOCK_SHIFT if rows else 0

    def mark_unknown(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Of what was written in these ranges only the settled blocks are known."""
        for start, stop in ranges:
            first = max(start >> BLOCK_SHIFT, self._settled)
            for block in range(first, (stop + BLOCK_BYTES - 1) >> BLOCK_SHIFT):
                self._put(block, 0, _UNKNOWN)
                self.has_unknown = True

    @property
    def is_settled(self) -> bool:
        """Does the journal know what the bytes that it tells of must be?"""
        return self._settled > 0

    @property
    def has_rows(self) -> bool:
        """Does the journal have rows of this blob's own?"""
        return bool(self._stored) or self.is_unsettled


def _chunk_of(row: bytes) -> array[int]:
    chunk: array[int] = array("Q")
    chunk.frombytes(row[: len(row) // 16 * 16])
    return chunk


def as_checksum(crc: int) -> Checksum:
    """A CRC64NVME as S3 writes it: base64.

    >>> as_checksum(0)
    'AAAAAAAAAAA='
    """
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


@lru_cache(maxsize=256)
def crc_of_zeros(length: int) -> int:
    """The CRC64NVME of so many zeros, 5 GiB of them in less than a millisecond."""
    if length <= BLOCK_BYTES:
        crc: int = crt.crc64nvme(_ZEROS[:length], 0)
    else:
        half = length // 2
        crc = crt.combine_crc64nvme(crc_of_zeros(length - half), crc_of_zeros(half), half)
    return crc


def _read_block(start: int, crc: int, length: int, read: Read) -> memoryview:
    """The first ``length`` bytes of a block. Raises DamagedBlockError unless they have this checksum."""
    data = read(start, length)
    if len(data) != length or crt.crc64nvme(data, 0) != crc:
        raise DamagedBlockError(start)
    return data


def _replaced(sum_: Sum, piece: memoryview, a: int, old: memoryview) -> Sum:
    """The sum of a block when ``piece`` at ``a`` takes the place of ``old`` (which may end before it).

    A CRC is linear: what one change of bytes does to it does not depend on the others. So nothing else
    is read, and what the disk altered elsewhere in the block stays as wrong as it was.
    """
    crc, length = sum_
    b = a + len(piece)
    if b > length:
        crc = crt.crc64nvme(_ZEROS[: b - length], crc)
        length = b
    old_crc = crt.crc64nvme(old, 0)
    if len(old) < len(piece):
        old_crc = crt.crc64nvme(_ZEROS[: len(piece) - len(old)], old_crc)
    difference = crt.crc64nvme(piece, 0) ^ old_crc
    return Sum(crc ^ crt.combine_crc64nvme(difference, 0, length - b), length)


def _nobody(blob_id: str) -> None:
    """Nobody wants to know."""
