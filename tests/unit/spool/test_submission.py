"""Files that are handed over become pending changes; what is not taken leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import DiskFullError, MountError, SourceError
from s3mount.spool import submission
from s3mount.spool.journal.changes import Put
from s3mount.spool.spool import Spool
from s3mount.spool.submission import Submissions

MIB = 1 << 20


def with_spool(
    folder: Path, main: Callable[[Spool, Submissions], Awaitable[None]], *, limit: int = 10 * MIB
) -> None:
    async def run() -> None:
        spool = Spool.open(folder / "state", size_bytes_max=limit)
        try:
            with trio.fail_after(20):
                await main(spool, Submissions(spool, trio.CapacityLimiter(4)))
        finally:
            spool.close()

    trio.run(run)


def opened(path: Path, body: bytes) -> int:
    path.write_bytes(body)
    return os.open(path, os.O_RDONLY)


def blobs(folder: Path) -> list[bytes]:
    return [each.read_bytes() for each in (folder / "state" / "blobs").iterdir()]


def test_copies_at_once_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "ROOM_WAIT_S", 0.2)
    fds = [opened(tmp_path / str(number), bytes([number]) * 8 * MIB) for number in range(2)]
    refused: list[str] = []

    async def main(spool: Spool, submissions: Submissions) -> None:
        async def copy(fd: int) -> None:
            try:
                await submissions.copy(str(fd), fd, is_forced=False)
            except DiskFullError as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            for fd in fds:
                nursery.start_soon(copy, fd)
        assert len(refused) == 1
        assert spool.used_bytes == 8 * MIB

    with_spool(tmp_path, main)
    assert [len(each) for each in blobs(tmp_path)] == [8 * MIB]
    for fd in fds:
        os.close(fd)


def test_what_is_copied_has_its_checksums(tmp_path: Path) -> None:
    fd = opened(tmp_path / "it", os.urandom(3 * MIB + 5))

    async def main(spool: Spool, submissions: Submissions) -> None:
        change = await submissions.copy("it", fd, is_forced=True)
        blob = spool.blob_of(change)
        assert blob is not None
        assert blob.read_checked() == (tmp_path / "it").read_bytes()
        assert blob.sums.of_whole(blob.size) is not None

    with_spool(tmp_path, main)
    os.close(fd)


def test_a_reference_takes_no_room_and_its_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "it"
    fd = opened(path, b"x" * 20 * MIB)

    async def main(spool: Spool, submissions: Submissions) -> None:
        change = await submissions.refer("it", fd, str(path))
        assert spool.used_bytes == 0
        assert isinstance(change, Put)
        spool.record([], ["it"])
        assert spool.used_bytes == 0

    with_spool(tmp_path, main)
    os.close(fd)
    assert path.stat().st_size == 20 * MIB
    assert os.listxattr(path) == []
    assert blobs(tmp_path) == []


def test_a_stream_that_nobody_confirms_leaves_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"half of it")
    os.close(writing)

    async def refuse(size_bytes: int) -> None:
        raise MountError(f"that was not all: {size_bytes}")

    async def main(spool: Spool, submissions: Submissions) -> None:
        with pytest.raises(MountError, match="10"):
            await submissions.stream("it", reading, (0, 0), refuse)
        assert not spool.changes
        assert spool.used_bytes == 0

    with_spool(tmp_path, main)
    os.close(reading)
    assert blobs(tmp_path) == []


def test_what_changes_while_it_is_read_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = opened(tmp_path / "it", b"x" * 2 * MIB)
    monkeypatch.setattr(submission, "CHUNK_BYTES", MIB)

    async def main(spool: Spool, submissions: Submissions) -> None:
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                os.truncate(tmp_path / "it", 100)

            nursery.start_soon(cut)
            with pytest.raises(SourceError, match="changed while it was read"):
                await submissions.copy("it", fd, is_forced=False)
        assert not spool.changes
        assert spool.used_bytes == 0

    with_spool(tmp_path, main)
    os.close(fd)
