"""The order in which things reach the disk: the journal before S3 changes, and before a blob goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mount import crashpoints
from s3mount.spool.journal.changes import Put, blob_id_of
from s3mount.spool.spool import Spool
from tests.sim.world import World, inline, simulated


class Log:
    """What happens to one spool, in order: flushes, those who waited for one, and named steps."""

    def __init__(self, spool: Spool) -> None:
        self.events: list[str] = []
        self.fails = False
        force = spool.journal.force

        def noted() -> None:
            if self.fails:
                raise OSError(5, "Input/output error")
            self.events.append("force")
            force()

        spool.journal.force = noted  # type: ignore[method-assign]
        journal = spool.durability.journal

        async def awaited() -> None:
            await journal()
            self.events.append("forced")

        spool.durability.journal = awaited  # type: ignore[method-assign]

    def step(self, name: str) -> None:
        if name in ("journal: committed", "blob: removed", "send: before", "complete: before"):
            self.events.append(name)


@simulated
async def test_s3_is_changed_only_after_the_journal_is_on_the_disk(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        log = Log(mount.spool)
        with crashpoints.listening(log.step):
            # Between the return of the flush and the request nobody else has a turn.
            await mount.write("small", b"x" * 100)
            await mount.sync()
            await mount.write("large", b"x" * 9000)
            await mount.sync()
            await mount.unlink("small")
            await mount.sync()
    sending = [
        n for n, event in enumerate(log.events) if event in ("send: before", "complete: before")
    ]
    assert all(log.events[number - 1] == "forced" for number in sending), log.events
    assert log.events.count("send: before") >= 3
    assert "complete: before" in log.events


@simulated
async def test_a_blob_goes_only_after_the_row_without_it_is_on_the_disk(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, size_bytes_max=1 << 20, offload=inline)
    log = Log(spool)
    blob = spool.new_blob()
    blob.write(0, b"x")
    spool.record([Put(key="a", blob_id=blob.id)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.durability.run)
        with crashpoints.listening(log.step):
            spool.record([], ["a"])
            assert blob.path.exists()
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert log.events == ["journal: committed", "force", "forced", "blob: removed"]
    assert not blob.path.exists()
    spool.close()


@simulated
async def test_a_moved_file_is_on_the_disk_before_its_old_name_goes_from_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 has an earlier content under the old name, and the new one nowhere else than in the blob."""
    flushed: list[int] = []
    flush = os.fdatasync

    def noted(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    monkeypatch.setattr("os.fdatasync", noted)
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=3600.0) as mount:
        await world.foreign_put("old", b"in S3")
        await mount.write("old", b"new")
        await mount.rename("old", "moved")
        blob = mount.spool.live_blobs[blob_id_of(mount.spool.changes["moved"])]
        assert os.stat(blob.path).st_ino not in flushed
        await mount.spool.durability.journal()
        assert os.stat(blob.path).st_ino in flushed


@simulated
async def test_a_disk_that_cannot_flush_keeps_the_blobs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(tmp_path, size_bytes_max=1 << 20, offload=inline)
    log = Log(spool)
    log.fails = True
    blob = spool.new_blob()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.durability.run)
        spool.drop_blob(blob)
        await trio.sleep(1)
        assert blob.path.exists()
        assert "old blobs stay" in caplog.text
        log.fails = False
        spool.drop_blob(spool.new_blob())
        await trio.sleep(1)
        assert spool.blobs.ids() == set()
        nursery.cancel_scope.cancel()
    spool.close()
