"""Whatever happens, a read gives the bytes of its version or an error that was to be expected."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.cache.maintenance import Worker
from s3mount.cache.reader import ReadHandle
from s3mount.errors import (
    NoSuchKeyError,
    PreconditionFailedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import ContentRef, ObjectHeaders
from tests.conftest import LONG
from tests.unit.cache.stores import (
    KIB,
    MIB,
    Request,
    SlowStore,
    disk_bytes,
    inline,
    running,
    unhurried,
)

SIZES = (1, 3000, 200 * KIB, MIB, MIB + 1, 3 * MIB + 17, 9 * MIB)
KEYS = len(SIZES)

key = st.integers(0, KEYS - 1)
read = st.tuples(
    st.integers(0, 5),
    st.floats(0, 1.05),
    st.sampled_from([1, 4096, 16 * KIB, 100_000, 128 * KIB, MIB, 3 * MIB]),
    st.sampled_from([0, 0, 0, 0.001, 0.02]),
)
Step: TypeAlias = tuple[str, object]
step: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("open"), key),
    st.tuples(st.just("open"), key),
    st.tuples(st.just("reads"), st.lists(read, min_size=1, max_size=6)),
    st.tuples(st.just("reads"), st.lists(read, min_size=1, max_size=6)),
    st.tuples(st.just("scan"), st.tuples(st.integers(0, 5), st.integers(1, 40))),
    st.tuples(st.just("close"), st.integers(0, 5)),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.01, 0.3, 40.0])),
    st.tuples(st.just("overwrite"), key),
    st.tuples(st.just("rename"), key),
    st.tuples(st.just("adopt"), key),
    st.tuples(st.just("evict"), st.integers(0, 4)),
    st.tuples(st.just("faults"), st.sampled_from([0.0, 0.3])),
    st.tuples(st.just("disk"), st.booleans()),
    st.tuples(st.just("vandal"), st.integers(0, 100)),
    st.tuples(st.just("restart"), st.booleans()),
)


class Life:
    """One example: a bucket, a cache folder, mounts of it one after the other, and handles."""

    def __init__(self, folder: Path, cap: int, seed: int, worker: Worker) -> None:
        self.worker = worker
        self.folder = folder
        self.cap = cap
        self.random = random.Random(seed)
        self.store = SlowStore(latency_s=0.005, bytes_per_s=50e6)
        self.store.report_delay_s = 0.002
        self.store.fail = self.fail
        self.fault_rate = 0.0
        self.disk_full = False
        self.seed = 0
        self.refs: list[ContentRef] = []
        self.data: dict[ContentRef, bytes] = {}
        self.handles: list[tuple[ReadHandle, bytes]] = []
        for number in range(KEYS):
            self.refs.append(self.write(f"key{number}", SIZES[number]))

    def write(self, name: str, size: int) -> ContentRef:
        self.seed += 1
        ref, data = self.store.add(name, size, self.seed)
        self.data[ref] = data
        return ref

    def fail(self, request: Request) -> StoreError | None:
        if self.random.random() < self.fault_rate:
            return ServerFaultError("injected", key=request.key, status=500)
        return None

    async def live(self, steps: list[Step]) -> None:
        """Take the steps; a restart begins a new mount on the same folder."""
        real = os.ftruncate

        def ftruncate(descriptor: int, size: int) -> None:
            if self.disk_full:
                raise OSError(errno.ENOSPC, "injected")
            real(descriptor, size)

        position = 0
        with (
            mock.patch("os.ftruncate", ftruncate),
            mock.patch("s3mount.cache.folder.ORPHAN_AGE_S", -1.0),
            mock.patch("s3mount.cache.maintenance.SWEEP_DELAY_S", 0.0),
        ):
            while position < len(steps):
                mount = running(
                    self.store, self.folder, size_bytes_max=self.cap, worker=self.worker
                )
                async with mount:
                    # What a kill left is swept, 256 small jobs.
                    await trio.sleep(10)
                    while position < len(steps):
                        name, argument = steps[position]
                        position += 1
                        if name == "restart":
                            if argument:
                                mount.kill()
                            break
                        await getattr(self, f"do_{name}")(mount, argument)
                        used = disk_bytes(self.folder)
                        known = int(mount.reader.statistics()["cache_bytes"])
                        assert known <= self.cap
                        assert used <= known + 128 * KIB, f"{used} on disk after {name}"
                    for handle, _ in self.handles:
                        handle.close()
                    self.handles.clear()

    async def do_open(self, mount: running, number: int) -> None:
        ref = self.refs[number]
        self.handles.append((mount.reader.open(ref), self.data[ref]))
        if len(self.handles) > 6:
            self.handles.pop(0)[0].close()

    async def do_close(self, mount: running, number: int) -> None:
        if number < len(self.handles):
            self.handles.pop(number)[0].close()

    async def do_reads(self, mount: running, reads: list[tuple[int, float, int, float]]) -> None:
        async with trio.open_nursery() as nursery:
            for number, where, length, patience_s in reads:
                if number < len(self.handles):
                    handle, data = self.handles[number]
                    offset = int(len(data) * where)
                    nursery.start_soon(self.read, handle, data, offset, length, patience_s)

    async def do_scan(self, mount: running, argument: tuple[int, int]) -> None:
        number, count = argument
        if number < len(self.handles):
            handle, data = self.handles[number]
            for index in range(count):
                await self.read(handle, data, index * 128 * KIB, 128 * KIB, 0)

    async def read(
        self, handle: ReadHandle, data: bytes, offset: int, length: int, patience_s: float
    ) -> None:
        wanted = data[offset : offset + length]
        with trio.move_on_after(patience_s or 1000) as patience:
            try:
                got = handle.read_now(offset, length)
                if got is None:
                    got = await handle.read(offset, length)
                assert got == wanted
            except ServerFaultError:
                assert self.fault_rate
            except (PreconditionFailedError, NoSuchKeyError):
                assert data not in [self.data[ref] for ref in self.refs]
        assert patience_s or not patience.cancelled_caught, "a read hung"

    async def do_sleep(self, mount: running, duration_s: float) -> None:
        await trio.sleep(duration_s)

    async def do_overwrite(self, mount: running, number: int) -> None:
        self.refs[number] = self.write(self.refs[number].key, SIZES[number])

    async def do_rename(self, mount: running, number: int) -> None:
        old = self.refs[number]
        self.seed += 1
        result = await self.store.copy(old, f"renamed{self.seed}", ObjectHeaders())
        await self.store.delete(old.key)
        new = ContentRef(f"renamed{self.seed}", result.etag, old.size, result.version_id)
        self.data[new] = self.data[old]
        self.refs[number] = new
        mount.reader.relabel(old, new)

    async def do_adopt(self, mount: running, number: int) -> None:
        ref = self.write(self.refs[number].key, SIZES[number])
        self.refs[number] = ref
        blob = self.folder / "blob"
        blob.write_bytes(self.data[ref])
        if not mount.reader.adopt(ref, blob):
            blob.unlink()

    async def do_evict(self, mount: running, quarters: int) -> None:
        disk_cache = mount.reader._disk_cache
        disk_cache.want_room(disk_cache.size_bytes_max * quarters // 4)
        await trio.sleep(0.2)

    async def do_faults(self, mount: running, rate: float) -> None:
        self.fault_rate = rate

    async def do_disk(self, mount: running, is_full: bool) -> None:
        self.disk_full = is_full

    async def do_vandal(self, mount: running, choice: int) -> None:
        files = sorted(self.folder.glob("bucket/blocks/*/*"))
        if files:
            files[choice % len(files)].unlink()


@settings(max_examples=150 if LONG else 40)
@given(
    st.lists(step, min_size=5, max_size=60),
    st.sampled_from([50_000, 600_000, 4 * MIB, 64 * MIB]),
    st.integers(0, 2**32),
    st.sampled_from([inline, unhurried]),
)
def test_reads_always_give_the_bytes_of_their_version(
    steps: list[Step], cap: int, seed: int, worker: Worker
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), cap, seed, worker)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(life.live, steps, clock=clock)
        # What is left behind must be right too.
        last: list[Step] = [("faults", 0.0), ("disk", False)]
        last += [("open", number) for number in range(1, KEYS)]
        last += [("scan", (number, 80)) for number in range(6)]
        trio.run(life.live, last, clock=trio.testing.MockClock(autojump_threshold=0))
