"""Batches of a manifest's entries that other processes verify."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.bulk.batches import dask_workers, running
from s3mount.bulk.batches.dask_workers import perform
from s3mount.bulk.batches.result_log import Header, ResultLog
from s3mount.bulk.batches.running import Spread, local_workers
from s3mount.bulk.batches.wire import Line, Lines, Size, Task, Verified, cut
from s3mount.bulk.batches.worker import serve
from s3mount.config import StoreConfig
from s3mount.customer_key import CustomerKey
from s3mount.errors import NoCredentialsError, StateInUseError, UsageError
from s3mount.manifest.model import Entry
from s3mount.manifest.verifying import Verification
from s3mount.refs import ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore
from s3mount.version import __version__

HEADER = Header("digest", None, None, False)
SECRET = "a secret of thirty-two bytes-----"


class Bucket(MemoryStore):
    """HEAD of the key ``deadly`` kills the worker; that of ``odd`` is a fault of ours in it."""

    worker: Worker
    denies = False

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        if self.denies:
            raise NoCredentialsError("no credentials were found")
        if key == "deadly":
            self.worker.kill()
            await trio.sleep_forever()
        if key == "odd":
            raise ValueError("odd")
        return await super().head(key, version_id=version_id)


class Worker:
    """A ``Child`` in this loop."""

    started = 0

    def __init__(self, bucket: Bucket) -> None:
        Worker.started += 1
        self.socket, self._theirs = socket.socketpair()
        self._bucket = bucket
        self._life = trio.CancelScope()

    async def read_stderr(self) -> None:
        with self._life:
            await serve(self._theirs, self._open_store)

    @asynccontextmanager
    async def _open_store(self, config: StoreConfig) -> AsyncIterator[Store]:
        await trio.lowlevel.checkpoint()
        self._bucket.worker = self
        yield self._bucket

    def kill(self) -> None:
        self._theirs.close()
        self._life.cancel()

    async def wait(self) -> str:
        await trio.lowlevel.checkpoint()
        return ""

    def close(self) -> None:
        self.socket.close()


def spread(
    path: Path, bucket: Bucket, keys: list[str], config: StoreConfig | None = None, batch: int = 5
) -> tuple[list[str], Verification, str]:
    """Problems in the order in which they are told, the sums, and why it stopped."""
    entries = [Entry("b", key, None) for key in keys]
    told: list[str] = []
    sums = Verification()

    def take(found: Verified) -> None:
        sums.add(found.sums)
        told.extend(f"{line.key} {line.why}" for line in found.problems)

    async def main() -> str:
        for key in keys:
            if not key.startswith("gone"):
                await bucket.put(key, b"1", ObjectHeaders())
        with ResultLog(path, HEADER) as log, trio.fail_after(20):
            pool = local_workers(1, lambda: Worker(bucket))
            run = Spread(log, config or StoreConfig(bucket=""), pool, content=False)
            await run.run(entries, Size(entries=batch), take)
            return run.stopped

    return told, sums, trio.run(main)


def test_an_entry_that_kills_its_worker_is_found_and_the_rest_is_verified(tmp_path: Path) -> None:
    keys = ["gone 0", "1", "odd", "3", "gone 4", "gone 5", "deadly", "7", "8", "9", "10", "gone 11"]
    told, sums, stopped = spread(tmp_path / "log", Bucket("b"), keys)
    assert told == [
        "gone 0 is not there any more",
        "odd cannot be read: ValueError: odd",
        "gone 4 is not there any more",
        "gone 5 is not there any more",
        "deadly cannot be read: the worker ended in the middle of it",
        "gone 11 is not there any more",
    ]
    assert (sums.checked, sums.problems, sums.unread, stopped) == (12, 6, 2, "")


def test_what_the_log_has_is_not_asked_again_but_what_could_not_be_read(tmp_path: Path) -> None:
    keys = ["0", "gone 1", "2", "3", "odd", "5", "6", "7", "gone 8"]
    first = spread(tmp_path / "log", Bucket("b"), keys, batch=3)
    # A kill in the middle of a line, after two of the three batches.
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:3]) + lines[3][:-20])

    class Counting(Bucket):
        asked: list[str] = []  # noqa: RUF012

        async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
            self.asked.append(key)
            return await super().head("0" if key == "odd" else key, version_id=version_id)

    told, sums, _ = spread(tmp_path / "log", Counting("b"), keys, batch=2)
    assert sorted(Counting.asked) == sorted(keys[3:])
    assert told == [line for line in first[0] if not line.startswith("odd")]
    assert (sums.checked, sums.problems) == (9, 2)
    # All is done: nothing is asked, no worker is started, and the same is told.
    before = Worker.started
    assert spread(tmp_path / "log", Counting("b"), keys)[0] == told
    assert Worker.started == before


def test_where_nothing_can_be_asked_the_run_stops_and_says_why(tmp_path: Path) -> None:
    bucket = Bucket("b")
    bucket.denies = True
    told, sums, stopped = spread(tmp_path / "log", bucket, ["0", "1"])
    assert (told, sums.checked, stopped) == ([], 0, "no credentials were found")
    bucket.denies = False
    assert spread(tmp_path / "log", bucket, ["0", "1"])[1].checked == 2


def test_no_secret_is_sent_nor_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(SECRET[:32])
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, SECRET)
    sent: list[bytes] = []

    class Recording(Lines):
        async def send(self, line: bytes) -> None:
            sent.append(line)
            await super().send(line)

    monkeypatch.setattr(running, "Lines", Recording)
    key = CustomerKey(path=str(tmp_path / "key"))
    spread(tmp_path / "log", Bucket("b"), ["0"], StoreConfig(bucket="", customer_key=key))
    assert len(sent) == 1
    assert os.fsencode(tmp_path / "key") in sent[0]
    everything = sent[0] + (tmp_path / "log").read_bytes()
    assert SECRET[:32].encode() not in everything


def test_a_log_of_other_work_or_in_use_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    found = Verified(Verification(checked=1, problems=1), [Line("b", "k", None, "is not there")])
    with ResultLog(path, HEADER) as log:
        log.add(0, 1, found)
        with pytest.raises(StateInUseError):
            ResultLog(path, HEADER)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    for other in (Header("other", None, None, False), Header("digest", None, None, True)):
        with pytest.raises(UsageError, match="another manifest or of other options"):
            ResultLog(path, other)
    (tmp_path / "text").write_text("no log")
    with pytest.raises(UsageError):
        ResultLog(tmp_path / "text", HEADER)
    assert (path.read_bytes(), (tmp_path / "text").read_text()) == (before, "no log")
    with ResultLog(path, HEADER) as log:
        assert log.take(0) == (1, found)


@given(st.lists(st.integers(0, 9)), st.data(), st.integers(1, 4), st.integers(1, 12))
def test_each_row_is_in_one_batch_unless_it_is_done(
    sizes: list[int], data: st.DataObject, count: int, size_bytes: int
) -> None:
    entries = [Entry("b", str(row), None, size) for row, size in enumerate(sizes)]
    marks = sorted(data.draw(st.sets(st.integers(0, len(sizes)))))
    done = {first: end - first for first, end in itertools.pairwise(marks)}
    done = {first: rows for number, (first, rows) in enumerate(done.items()) if number % 2}
    batches = list(cut(entries, done, Size(count, size_bytes)))
    rows = [batch.first + at for batch in batches for at in range(len(batch.entries))]
    left_out = {row for first, length in done.items() for row in range(first, first + length)}
    assert rows == [row for row in range(len(sizes)) if row not in left_out]
    for batch in batches:
        assert batch.entries == entries[batch.first : batch.first + len(batch.entries)]
        held = sum(entry.size or 0 for entry in batch.entries)
        assert len(batch.entries) <= count
        assert held <= size_bytes or len(batch.entries) == 1


def test_another_version_of_s3mount_on_a_worker_of_a_cluster_is_told() -> None:
    told = msgspec.json.decode(perform("0.0.0", b"{}"), type=Verified)
    assert "install the same" in told.sums.stopped


def test_the_process_of_a_clusters_worker_is_kept_and_replaced_when_it_dies() -> None:
    task = msgspec.json.encode(Task(StoreConfig(bucket=""), False, []))
    nothing = Verified(Verification(), [])

    def done() -> Verified:
        return msgspec.json.decode(perform(__version__, task), type=Verified)

    try:
        assert done() == nothing
        first = dask_workers._kept.process
        assert done() == nothing
        assert dask_workers._kept.process is first
        first.kill()
        with pytest.raises(OSError, match=r"ended in the middle|Broken pipe|reset"):
            done()
        assert done() == nothing
    finally:
        dask_workers._kept.stream = None
        dask_workers._kept.process.kill()
        dask_workers._kept.process.wait()
