"""The folder of snapshots: which are open, and for whose sake one is closed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import cast

import pytest
import trio
import trio.testing

from s3mount.refs import Attributes
from s3mount.vfs.missing_versions import MissingVersions
from s3mount.vfs.snapshots import snapshots_dir
from s3mount.vfs.snapshots.snapshot import SnapshotView
from s3mount.vfs.snapshots.snapshots_dir import SNAPSHOTS_INODE, SnapshotsDirectory
from s3mount.vfs.view import FOREVER_S, SLOT_BITS, Entry, View


class OneFolder:
    """As much of a snapshot as is asked of it here; S3 answers once ``answered`` is set."""

    def __init__(self, base: int) -> None:
        self.top_inode = base + 1
        self.references = 0
        self.open_files = 0
        self.is_closed = False
        self.answered = trio.Event()

    async def getattr(self, inode: int) -> Entry:
        await self.answered.wait()
        assert not self.is_closed
        return Entry(inode, Attributes(0o40555, 0, 0, 0, 0, 0), 0, FOREVER_S, FOREVER_S)

    def close(self) -> None:
        self.is_closed = True


class Opened:
    """A directory of snapshots, and those that it opened."""

    def __init__(self) -> None:
        self.snapshots: list[OneFolder] = []
        self.views: dict[int, View] = {}
        self.directory = SnapshotsDirectory(
            self.views, self._open, ".snapshots", uid=0, gid=0, mounted_ns=0
        )

    async def _open(
        self, at_ns: int, base: int, place: str, missing: MissingVersions
    ) -> tuple[SnapshotView, Callable[[], None]]:
        await trio.lowlevel.checkpoint()
        found = OneFolder(base)
        self.snapshots.append(found)
        return cast(SnapshotView, found), found.close


def test_a_snapshot_that_s3_is_asked_for_is_not_closed_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots_dir, "SNAPSHOTS_MAX", 1)

    async def main() -> None:
        opened = Opened()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.directory.lookup, SNAPSHOTS_INODE, "2020-01-01")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5), pytest.raises(OSError, match="in use") as refusal:
                await opened.directory.lookup(SNAPSHOTS_INODE, "2020-01-02")
            assert refusal.value.errno == errno.EMFILE
            opened.snapshots[0].answered.set()
        assert opened.snapshots[0].references == 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_kernel_is_made_to_forget_the_oldest_before_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots_dir, "SNAPSHOTS_MAX", 4)

    async def main() -> None:
        opened = Opened()
        forgotten: list[str] = []

        async def forget_entry(parent: int, name: str) -> None:
            await trio.lowlevel.checkpoint()
            assert parent == SNAPSHOTS_INODE
            forgotten.append(name)
            opened.snapshots[int(name[-2:]) - 1].references = 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.directory.keep_room, forget_entry)
            for day in range(1, 10):
                async with trio.open_nursery() as asking:
                    asking.start_soon(opened.directory.lookup, SNAPSHOTS_INODE, f"2020-01-{day:02}")
                    await trio.testing.wait_all_tasks_blocked()
                    opened.snapshots[-1].answered.set()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert forgotten[:2] == ["2020-01-01", "2020-01-02"]
        assert len(opened.views) <= 4 + 1

    trio.run(main)


def test_what_the_kernel_forgot_makes_room_and_leaves_the_table() -> None:
    async def main() -> None:
        opened = Opened()
        for day in range(1, 4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.directory.lookup, SNAPSHOTS_INODE, f"2020-01-0{day}")
                await trio.testing.wait_all_tasks_blocked()
                opened.snapshots[-1].answered.set()
        slots = {each.top_inode >> SLOT_BITS for each in opened.snapshots}
        assert slots | {SNAPSHOTS_INODE >> SLOT_BITS} == set(opened.views)
        opened.snapshots[0].references = 0
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(snapshots_dir, "SNAPSHOTS_MAX", 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.directory.lookup, SNAPSHOTS_INODE, "2020-01-04")
                await trio.testing.wait_all_tasks_blocked()
                opened.snapshots[-1].answered.set()
        assert [each.is_closed for each in opened.snapshots] == [True, False, False, False]
        assert opened.snapshots[0].top_inode >> SLOT_BITS not in opened.views
        opened.directory.close()
        assert all(each.is_closed for each in opened.snapshots)
        assert set(opened.views) == {SNAPSHOTS_INODE >> SLOT_BITS}

    trio.run(main)
