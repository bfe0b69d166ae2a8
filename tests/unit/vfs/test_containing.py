"""An unexpected exception at every step of a change and of a start, one after another: it stays where it is.

The mount goes on, the other files arrive, the one arrives too or is parked, and the next start works.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

from s3mount import crashpoints
from s3mount.dedupe.index import ContentIndex
from s3mount.errors import S3MountError
from s3mount.spool.blobs.blobs import Blob, BlobFolder
from s3mount.spool.blobs.block_checksums import BlockSums
from s3mount.spool.journal.changes import Change, Put
from s3mount.spool.journal.dependencies import Dependencies
from s3mount.spool.journal.durability import Durability
from s3mount.spool.journal.journal import Journal
from s3mount.spool.journal.labels import Labels
from s3mount.spool.journal.put_log import PutLog
from s3mount.spool.journal.states import State
from s3mount.spool.spool import Spool
from s3mount.spool.upload.deletions import Deletions
from s3mount.spool.upload.multipart import MultipartSender
from s3mount.spool.upload.own_tries import OwnTries
from s3mount.spool.upload.queue import UploadQueue
from s3mount.spool.upload.resuming import Resuming
from s3mount.spool.upload.sender import Sender
from s3mount.spool.upload.stale_uploads import StaleUploads
from s3mount.spool.upload.streaming import Streaming
from s3mount.spool.upload.uploader import Uploader
from s3mount.transfer.parts import PartsUpload
from s3mount.tree.memory import HeadMemory
from s3mount.vfs.uploads.dedupe import Deduplicator
from s3mount.vfs.uploads.upload_provider import UploadProvider
from s3mount.vfs.uploads.uploads import UploadOutcomes
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, LifeStore, World, inline, simulated


@pytest.fixture(autouse=True)
def faults_are_expected(unexpected: list[str]) -> Iterator[None]:
    """What is thrown in here is logged, and nothing else is asked of the log."""
    yield
    unexpected.clear()


KINDS = (RuntimeError, OverflowError, AssertionError, KeyError)
NAMED = [name for name in crashpoints.STEPS if not name.startswith("engine: ")]
SENDING = (
    *(
        Blob,
        ContentIndex,
        Deletions,
        Durability,
        HeadMemory,
        Journal,
        Deduplicator,
        Labels,
        LifeStore,
    ),
    *(StaleUploads, MultipartSender, PartsUpload, PutLog, Dependencies, Sender, Spool, Streaming),
    *(OwnTries, UploadProvider, UploadOutcomes, UploadQueue, Uploader),
)
STARTING = (Blob, BlobFolder, BlockSums, Labels, PartsUpload, Dependencies, Resuming)
BIG = bytes(range(251)) * (5 * PART_BYTES // 251)
CONTAINS = "_work"
"""What keeps the faults of all others where they are."""
WANTED = {
    "small": b"small",
    "big": BIG,
    "twin": BIG[::-1],
    "changed": b"new" + BIG[3:],
    "clean": b"moved",
    "renamed": b"moved",
    "d/below": b"below",
}


def functions_of(kind: type) -> list[str]:
    """All that such an object can be asked to do."""
    return [
        name
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("__") and name != CONTAINS
    ]


class Fault:
    """Raises the first time, or (``lasts``) every time, that its place is passed while it is armed."""

    def __init__(self, number: int, *, lasts: bool = False) -> None:
        self._kind = KINDS[number % len(KINDS)]
        self._lasts = lasts
        self.is_armed = False
        self.passed = 0

    def __call__(self) -> None:
        if self.is_armed and (self._lasts or not self.passed):
            self.passed += 1
            raise self._kind("thrown by the test")


Place = Callable[[Fault], AbstractContextManager[None]]


@contextmanager
def at_step(name: str, fault: Fault) -> Iterator[None]:
    def listener(reached: str) -> None:
        if reached == name:
            fault()

    with crashpoints.listening(listener):
        yield


@contextmanager
def at_function(kind: type, name: str, fault: Fault) -> Iterator[None]:
    function: Callable[..., Any] = vars(kind)[name]

    def called(*args: Any, **kwargs: Any) -> Any:
        fault()
        return function(*args, **kwargs)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        fault()
        return await function(*args, **kwargs)

    with mock.patch.object(
        kind, name, awaited if inspect.iscoroutinefunction(function) else called
    ):
        yield


async def work(world: World, mount: Mount, top: str) -> set[str]:
    """What programs do in a folder of their own; the names of what they were told an error of."""
    told: set[str] = set()

    async def attempt(name: str, operation: Callable[..., Any], *args: Any) -> None:
        try:
            await operation(f"{top}/{name}", *args)
        except Exception:  # noqa: BLE001  FUSE answers EIO
            told.add(name)

    await attempt("small", mount.write, b"small")
    await attempt("d", mount.mkdir)
    await attempt("d/below", mount.write, b"below")
    await attempt("big", mount.write, BIG)
    await attempt("twin-of", mount.read)
    await attempt("twin", mount.write, BIG[::-1])
    await attempt("changed", mount.change, b"new", 0)
    await attempt("clean", mount.chmod, 0o600)
    await attempt("moved", mount.rename, f"{top}/renamed")
    await attempt("gone", mount.unlink)
    return told


async def go_on(world: World, mount: Mount, top: str, told: set[str]) -> None:
    """The mount lives: another file arrives at once, and in time all that no program was told an error of."""
    await mount.write(f"{top}-other", b"other")
    with trio.fail_after(20):
        while f"{top}-other" not in world.files():  # noqa: ASYNC110
            await trio.sleep(1)
    await mount.fs.retry([], overwrite=False)
    await trio.sleep(20)
    files = world.files()
    lost = {
        name
        for name, content in WANTED.items()
        if files.get(f"{top}/{name}") != content and not is_parked(mount, f"{top}/{name}")
    }
    lost |= {name for name in ("gone", "moved") if f"{top}/{name}" in files}
    lost -= told | ({"renamed"} if "moved" in told else set())
    assert not lost, f"{top}: {lost} of {sorted(mount.pending().items())}"


def is_parked(mount: Mount, key: str) -> bool:
    change = mount.spool.changes.get(key)
    return change is not None and change.state is State.PARKED


def check_sending(tmp_path: Path, places: Mapping[str, Place], *, is_closed: bool) -> None:
    """``is_closed``: the faults strike when programs are done and only the mount itself works."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted(upload_delay_s=5 if is_closed else 0) as mount:
            for number, (top, place) in enumerate(places.items()):
                for key in ("changed", "twin-of", "clean", "gone", "moved"):
                    content = {"changed": BIG, "twin-of": BIG[::-1]}.get(key, b"moved")
                    await world.foreign_put(f"{top}/{key}", content)
                await trio.sleep(2)
                fault = Fault(number)
                with place(fault):
                    fault.is_armed = not is_closed
                    told = await work(world, mount, top)
                    fault.is_armed = True
                    await trio.sleep(10)
                await go_on(world, mount, top, told)
        async with world.mounted() as mount:
            await mount.write("later", b"later")
            await trio.sleep(20)
            assert world.files()["later"] == b"later"
            assert {change.state for change in mount.spool.changes.values()} <= {State.PARKED}

    run()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_fault_at_every_named_step(tmp_path: Path, is_closed: bool) -> None:
    places = {name.replace(": ", "-"): partial(at_step, name) for name in NAMED}
    check_sending(tmp_path, places, is_closed=is_closed)


@pytest.mark.parametrize("kind", SENDING)
def test_a_fault_in_whatever_is_called(tmp_path: Path, kind: type) -> None:
    places = {name: partial(at_function, kind, name) for name in functions_of(kind)}
    check_sending(tmp_path, places, is_closed=True)


@pytest.mark.parametrize("kind", STARTING)
def test_a_fault_at_the_start_concerns_one_file(tmp_path: Path, kind: type) -> None:
    """Every time something is done with it: it is parked with the reason, and goes on once the fault is gone."""

    @simulated
    async def run() -> None:
        for number, name in enumerate(functions_of(kind)):
            world = World(tmp_path / name)
            world.folder.mkdir()
            await world.foreign_put("twin", BIG)
            async with world.mounted(upload_delay_s=500) as mount:
                await mount.write("small", b"small")
                await mount.write("big", BIG)
                await mount.change("twin", b"new", 0)
                mount.kill()
            fault = Fault(number, lasts=True)
            with at_function(kind, name, fault):
                fault.is_armed = True
                with suppress(S3MountError, *KINDS):
                    Spool.open(world.state, size_bytes_max=1 << 30, offload=inline).close()
            async with world.mounted() as mount:
                await mount.sync()
                assert world.files() == {"small": b"small", "big": BIG, "twin": b"new" + BIG[3:]}

    run()


@simulated
async def test_a_file_that_cannot_be_taken_over_waits_and_tells_why(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=500) as mount:
        for name in ("bad", "good"):
            await mount.write(name, name.encode() * PART_BYTES)
        mount.kill()
    recover = Spool._recover

    def fails(self: Spool, change: Change, *args: Any) -> None:
        recover(self, change, *args)
        if change.key == "bad":
            raise OverflowError("thrown by the test")

    for _ in range(2):
        with mock.patch.object(Spool, "_recover", fails):
            async with world.mounted() as mount:
                await trio.sleep(400)
                assert world.files() == {"good": b"good" * PART_BYTES}
                (told,) = (await mount.fs.status())["pending"]["list"]
                assert (told["key"], told["state"]) == ("bad", "parked")
                assert "OverflowError: thrown by the test" in told["error"]
                with pytest.raises(OSError, match="could not be taken over"):
                    await mount.read("bad")
                change = mount.spool.journal.load()[0][0]
                assert isinstance(change, Put)
                assert change.sums
                mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files()["bad"] == b"bad" * PART_BYTES
