"""What was written is known by its checksums: through kills, and against a disk that alters it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from awscrt import checksums as crt

from s3mount.refs import Attributes
from s3mount.s3.checksums import BLOCK_BYTES, crc64nvme
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import (
    CHUNK_BLOCKS,
    CHUNK_BYTES,
    BlockSums,
    DamagedBlockError,
    crc_of_zeros,
)
from s3mount.spool.journal.changes import Change, Put
from s3mount.spool.journal.states import Event
from s3mount.spool.spool import Spool
from tests.sim.world import inline

ATTRIBUTES = Attributes(0o100644, 1, 2, 3, 4, 5)


def opened(folder: Path) -> Spool:
    return Spool.open(folder, size_bytes_max=1 << 40, offload=inline)


def pending(spool: Spool, content: bytes, at: int = 0) -> tuple[Change, Blob]:
    """A file that is closed and journalled."""
    blob = spool.new_blob()
    spool.grew(blob.write(at, content))
    change = Put(key="a", attributes=ATTRIBUTES, blob_id=blob.id)
    spool.record([change])
    return change, blob


def flip(blob: Blob, at: int) -> None:
    """One bit is not as it was written."""
    (byte,) = os.pread(blob.fd, 1, at)
    os.pwrite(blob.fd, bytes([byte ^ 1]), at)


def test_a_bit_that_flips_while_nobody_runs_is_found(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, os.urandom(3 * BLOCK_BYTES + 5))
    flip(blob, 2 * BLOCK_BYTES + 7)
    spool.close()
    again = opened(tmp_path)
    found = again.live_blobs[blob.id]
    with pytest.raises(DamagedBlockError, match=str(2 * BLOCK_BYTES)):
        found.read_checked()
    expected = found.body(0, found.size).expected
    assert expected is not None
    assert expected != crc64nvme(found.read(0, found.size))
    again.close()


def test_sums_of_a_large_sparse_file_come_back(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, b"far", at=2 * CHUNK_BYTES)
    spool.grew(blob.write(5, b"near"))
    change = spool.changes["a"]
    spool.save(change)
    whole = blob.body(0, blob.size).expected
    assert whole == crc64nvme(blob.read(0, blob.size))
    spool.close()
    again = opened(tmp_path)
    assert again.live_blobs[blob.id].body(0, blob.size).expected == whole
    again.changes["a"].apply(Event.START)
    again.finish(again.changes["a"])
    again.drop_blob(again.live_blobs[blob.id])
    assert again.journal.blobs_with_sums() == set()
    again.close()


def test_what_was_written_and_not_journalled_is_unknown_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A kill after a write into a journalled block: its stored checksum must not condemn what is right."""
    spool = opened(tmp_path)
    _, blob = pending(spool, b"x" * (2 * BLOCK_BYTES))
    blob.write(10, b"newer")
    spool.close()
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path)
    assert "checksums are computed from what the disk has" in caplog.text
    found = again.live_blobs[blob.id]
    assert found.body(0, found.size).expected is None
    assert found.read_checked()[10:15] == b"newer"
    again.save(again.changes["a"])
    again.close()
    once_more = opened(tmp_path)
    assert once_more.live_blobs[blob.id].read_checked()[10:15] == b"newer"
    once_more.close()


def test_what_was_appended_and_not_journalled_leaves_the_rest_known(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, b"x" * BLOCK_BYTES)
    blob.write(BLOCK_BYTES, b"more")
    spool.close()
    again = opened(tmp_path)
    found = again.live_blobs[blob.id]
    assert found.sums.get(1).length < 0, "unknown"
    assert found.sums.of_whole(found.size) is None
    assert found.body(0, BLOCK_BYTES).expected == crc64nvme(b"x" * BLOCK_BYTES)
    again.close()


def test_a_rewritten_file_is_known_again_once_it_is_journalled(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    change, blob = pending(spool, b"x" * BLOCK_BYTES)
    blob.write(3, b"y")
    spool.save(change)
    spool.close()
    again = opened(tmp_path)
    found = again.live_blobs[blob.id]
    assert found.body(0, found.size).expected == crc64nvme(found.read(0, found.size))
    again.close()


def test_a_file_that_lost_its_end_on_the_disk_is_not_taken_for_a_shorter_one(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, b"x" * 5000)
    os.truncate(blob.path, 10)
    spool.close()
    again = opened(tmp_path)
    assert again.changes["a"].size == 5000
    with pytest.raises(DamagedBlockError):
        again.live_blobs[blob.id].read_checked()
    again.close()


def test_a_change_of_a_damaged_block_does_not_vouch_for_the_rest(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, b"x" * 5000)
    flip(blob, 4000)
    blob.write(100, b"yy")
    blob.write(4990, b"beyond the end of it")
    with pytest.raises(DamagedBlockError):
        blob.read_checked()
    with pytest.raises(DamagedBlockError):
        blob.truncate(4500)
    blob.write(0, b"z" * blob.size)
    assert blob.read_checked() == b"z" * blob.size
    spool.close()


def test_a_disk_that_fails_in_the_middle_of_a_write_leaves_the_block_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    _, blob = pending(spool, b"x" * 5000)
    with monkeypatch.context() as patch:
        real = os.pwrite
        answers = iter([3, 0])

        def failing(fd: int, data: bytes, at: int) -> int:
            if not (n := next(answers)):
                raise OSError(28, "no space left on device")
            return real(fd, data[:n], at)

        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match="no space"):
            blob.write(0, b"yyyyyyyy")
    assert blob.read_checked()[:6] == b"yyyxxx"
    assert blob.body(0, 5000).expected is None
    spool.close()


def test_whole_chunks_and_holes_have_the_sums_of_their_blocks() -> None:
    """What is taken a chunk at a time is what each block says: data, a hole, data to the end of the file."""
    zeros, ones = bytes(BLOCK_BYTES), b"1" * BLOCK_BYTES
    sums = BlockSums()
    data = [n for n in range(4 * CHUNK_BLOCKS) if n < CHUNK_BLOCKS or n > 3 * CHUNK_BLOCKS + 7]
    for block in data:
        prepared = sums.prepare(block * BLOCK_BYTES, memoryview(ones), 0, read_nothing)
        sums.commit(block * BLOCK_BYTES, prepared)
    found = sums.of_whole(4 * CHUNK_BLOCKS * BLOCK_BYTES)
    assert found is not None
    full, hole = crt.crc64nvme(ones, 0), crt.crc64nvme(zeros, 0)
    is_data = set(data)
    wanted = [full if block in is_data else hole for block in range(4 * CHUNK_BLOCKS)]
    assert list(found) == wanted


def read_nothing(offset: int, length: int) -> memoryview:
    raise AssertionError("nothing has to be read")


@pytest.mark.parametrize("length", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 77])
def test_the_checksum_of_zeros_is_that_of_zeros(length: int) -> None:
    assert crc_of_zeros(length) == crt.crc64nvme(bytes(length), 0)


def test_what_is_written_is_known_from_what_is_a_hole() -> None:
    """At the borders of a block and of a chunk, and where a block was lost."""
    sums = BlockSums()
    data = memoryview(bytes(10))
    for block in (3, CHUNK_BLOCKS + 1):
        at = block * BLOCK_BYTES + 5
        sums.commit(at, sums.prepare(at, data, 0, lambda *_: memoryview(b"")))
    lost = 3 * CHUNK_BLOCKS * BLOCK_BYTES
    sums.lose(lost, lost + 1)
    for start, stop, touched in (
        (0, 3 * BLOCK_BYTES, False),
        (0, 3 * BLOCK_BYTES + 1, True),
        (3 * BLOCK_BYTES, 4 * BLOCK_BYTES, True),
        (4 * BLOCK_BYTES, (CHUNK_BLOCKS + 1) * BLOCK_BYTES, False),
        (4 * BLOCK_BYTES, (CHUNK_BLOCKS + 2) * BLOCK_BYTES, True),
        ((CHUNK_BLOCKS + 2) * BLOCK_BYTES, lost, False),
        (lost, 1 << 50, True),
        (1 << 50, (1 << 50) + (1 << 33), False),
    ):
        assert sums.touches(start, stop) is touched, (start, stop)
