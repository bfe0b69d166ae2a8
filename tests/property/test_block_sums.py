"""Checksums of a blob's blocks, against the plain bytes of a file that is written, cut, closed and recovered."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from awscrt import checksums as crt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from s3mount.s3.checksums import BLOCK_BYTES
from s3mount.spool.blobs import block_checksums
from s3mount.spool.blobs.blobs import Blob, BlobFolder
from s3mount.spool.blobs.block_checksums import DamagedBlockError, as_checksum
from s3mount.spool.blobs.extents import Extents

CHUNK_BLOCKS = 4
FAR = 6 * BLOCK_BYTES
"""Some writes go behind what a single journal row tells of, which is made small here."""
OFFSETS = st.one_of(
    st.integers(0, 4 * BLOCK_BYTES),
    st.integers(-40, 40).map(lambda n: 2 * BLOCK_BYTES + n),
    st.integers(0, 2 * BLOCK_BYTES).map(lambda n: FAR + n),
)
LENGTHS = st.one_of(st.integers(1, 5000), st.just(BLOCK_BYTES), st.integers(1, 2 * BLOCK_BYTES))


def crc(data: bytes) -> str:
    """The CRC64NVME of plain bytes."""
    return as_checksum(crt.crc64nvme(data))


class WrittenBlob(RuleBasedStateMachine):
    """One blob, its journal, and what its bytes must be."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(block_checksums, "CHUNK_BLOCKS", CHUNK_BLOCKS)
        self._temporary = TemporaryDirectory()
        self.folder = BlobFolder(Path(self._temporary.name))
        self.blob = self.folder.create()
        self.plain = bytearray()
        self.rows: dict[int, bytes] = {}
        self.row = b""
        self.settled_size = 0
        self.is_unsettled = False
        self._watch()

    def _watch(self) -> None:
        def unsettled(blob_id: str) -> None:
            self.is_unsettled = True

        self.blob.sums.on_unsettled = unsettled

    def teardown(self) -> None:
        self.blob.release()
        self._temporary.cleanup()
        self._patch.undo()

    @rule(offset=OFFSETS, length=LENGTHS)
    def write(self, offset: int, length: int) -> None:
        data = os.urandom(8) * (length // 8 + 1)
        self.blob.write(offset, data[:length])
        if offset > len(self.plain):
            self.plain.extend(bytes(offset - len(self.plain)))
        self.plain[offset : offset + length] = data[:length]

    @rule(length=LENGTHS)
    def append(self, length: int) -> None:
        self.write(len(self.plain), length)

    @rule(size=OFFSETS)
    def truncate(self, size: int) -> None:
        self.blob.truncate(size)
        del self.plain[size:]
        self.plain.extend(bytes(size - len(self.plain)))

    @rule()
    def journal(self) -> None:
        """What the spool writes when the file is closed or synced."""
        known = self.blob.sums
        self.row = known.row()
        self.rows |= dict(known.dirty_rows())
        self.settled_size = self.blob.size
        known.settled(self.blob.size, self.row)
        self.is_unsettled = False

    @rule()
    def clone(self) -> None:
        """The original is on its way: writing goes on in a copy."""
        old, self.blob = self.blob, self.folder.clone(self.blob)
        old.release()
        self.rows, self.row, self.settled_size = {}, b"", 0
        self._watch()

    @rule()
    def die_and_recover(self) -> None:
        """Kill -9 and the next start: the journal as it was, the file as it is."""
        old = self.blob
        old.release()
        self.blob = Blob(old.id, self._temporary.name, size=self.settled_size)
        self.blob.extents = Extents([(0, len(self.plain))])
        self.blob.size = len(self.plain)
        stored = {0: self.row} if self.row else dict(self.rows)
        if not self.is_unsettled:
            self.blob.sums.recover(stored, self.settled_size)
        self.blob.sums.mark_unknown([(0, len(self.plain))])
        self._watch()

    @invariant()
    def every_known_sum_is_right(self) -> None:
        plain = bytes(self.plain)
        pieces = [plain[at : at + BLOCK_BYTES] for at in range(0, len(plain), BLOCK_BYTES)]
        for number, piece in enumerate(pieces):
            found, length = self.blob.sums.get(number)
            assert length < 0 or found == crt.crc64nvme(piece[:length])
        whole = self.blob.sums.of_whole(len(plain))
        is_known = all(self.is_known(number) for number in range(len(pieces)))
        assert whole == (array("Q", map(crt.crc64nvme, pieces)) if is_known else None)
        self.blob.check(0, len(plain))

    def is_known(self, number: int) -> bool:
        return self.blob.sums.get(number).length >= 0

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def a_range_has_its_sum(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.plain) - 1))
        stop = data.draw(st.integers(start + 1, min(start + 4 * BLOCK_BYTES, len(self.plain))))
        found = self.blob.body(start, stop).expected
        known = self.blob.sums.of_whole(len(self.plain)) is not None
        assert found == crc(bytes(self.plain[start:stop])) or (found is None and not known)

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def a_bit_that_flips_is_found(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.plain) - 1))
        is_known = self.is_known(at // BLOCK_BYTES)
        right = bytes(self.plain[at : at + 1])
        os.pwrite(self.blob.fd, bytes([right[0] ^ 0x10]), at)
        if is_known and at % BLOCK_BYTES < self.blob.sums.get(at // BLOCK_BYTES).length:
            with pytest.raises(DamagedBlockError):
                self.blob.check(0, len(self.plain))
        os.pwrite(self.blob.fd, right, at)


TestWrittenBlob = WrittenBlob.TestCase
TestWrittenBlob.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
