"""Somebody else writes the same keys: both versions are kept, and our own lost answers are no conflict."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import NetworkError, S3MountError
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


def lost() -> NetworkError:
    return NetworkError("the answer was lost")


@simulated
async def test_a_foreign_version_keeps_the_name_and_ours_gets_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"base")
        await mount.sync()
        await mount.write("a", b"ours")
        await world.foreign_put("a", b"theirs")
        await mount.sync()
        files = world.files()
        assert files.pop("a") == b"theirs"
        [(name, data)] = files.items()
        assert re.fullmatch(r"a\.conflict-[^/]+-\d{8}T\d{6}", name)
        assert data == b"ours"
        assert mount.fs.uploader.counters["conflicts"] == 1
        assert await mount.tree() == {"a": b"theirs", name: b"ours"}
        assert mount.leftovers() == []


@simulated
async def test_two_conflicts_of_one_name_within_a_second_are_two_files(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(metadata_ttl_s=0.0) as mount:
        for number in range(2):
            await mount.write("a", b"ours %d" % number)
            await world.foreign_put("a", b"theirs %d" % number)
            await mount.sync()
        assert sorted(world.files().values()) == [b"ours 0", b"ours 1", b"theirs 1"]


@pytest.mark.parametrize("theirs", [b"theirs", None])
def test_what_was_replaced_after_it_was_looked_up_is_not_written_for_nobody(
    tmp_path: Path, theirs: bytes | None
) -> None:
    """A name is looked up, S3's other state is seen, then the file is opened: the kernel looks again."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        await world.foreign_put("a", b"base")
        async with world.mounted(metadata_ttl_s=0.0) as mount:
            node = await mount.node("a")
            if theirs is None:
                await world.s3.delete("a")
            else:
                await world.foreign_put("a", theirs)
            await trio.sleep(1.0)
            await mount.tree()
            with pytest.raises(OSError, match="somebody else") as refused:
                mount.fs.contents.open(node, os.O_RDWR)
            assert refused.value.errno == errno.ESTALE
            with pytest.raises(OSError, match="somebody else"):
                await mount.fs.contents.truncate(node, 0)
            with pytest.raises(OSError, match="somebody else"):
                await mount.fs.metadata.set(node, mode=0o600)
            await mount.sync()
            assert world.files() == ({} if theirs is None else {"a": theirs})
            assert mount.leftovers() == []

    run()


@simulated
async def test_a_file_that_is_written_keeps_its_name_till_it_is_closed(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"base")
    async with world.mounted(metadata_ttl_s=0.0) as mount:
        fd = await mount.open("a", os.O_RDWR)
        await world.foreign_put("a/b", b"theirs")
        await trio.sleep(1.0)
        assert sorted(await mount.tree()) == ["a"]
        await mount.pwrite(fd, b"ours", 0)
        await mount.close(fd)
        await mount.sync()
        assert world.files() == {"a": b"ours", "a/b": b"theirs"}


@simulated
async def test_a_new_file_does_not_overwrite_one_that_appeared_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"ours" * 5 * PART)
        await world.foreign_put("a", b"theirs")
        await mount.sync()
        assert sorted(world.files().values()) == sorted([b"theirs", b"ours" * 5 * PART])
        assert world.files()["a"] == b"theirs"


@simulated
async def test_who_has_our_version_open_goes_on_reading_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"base")
        await mount.sync()
        fd = await mount.open("a", os.O_RDWR)
        await mount.pwrite(fd, b"ours", 0)
        await mount.close(fd)
        fd = await mount.open("a")
        await world.foreign_put("a", b"theirs")
        await mount.sync()
        assert await mount.read_all(fd) == b"ours"
        await mount.close(fd)
        assert await mount.read("a") == b"theirs"
        assert mount.leftovers() == []


@pytest.mark.parametrize("size", [10, 3000, 3 * PART])
def test_a_lost_answer_of_our_own_is_no_conflict_and_is_not_sent_again(
    tmp_path: Path, size: int
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.faults = script = Script()
        for operation in ("put", "complete_multipart"):
            script.fail(operation, lost, key="a", times=1, is_done=True)
        async with world.mounted() as mount:
            await mount.write("a", b"x" * size)
            await mount.sync()
            assert world.files() == {"a": b"x" * size}
            assert mount.fs.uploader.counters["conflicts"] == 0
            assert world.requests["upload_part"] == (0 if size <= PART else size // PART)
            assert mount.leftovers() == []

    run()


@simulated
async def test_a_lost_answer_and_then_another_state_is_no_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lost, key="a", times=1, is_done=True)
    async with world.mounted() as mount:
        await mount.write("a", b"one")
        await trio.sleep(0.3)
        assert world.files() == {"a": b"one"}
        await mount.write("a", b"two")
        await mount.sync()
        assert world.files() == {"a": b"two"}


@simulated
async def test_a_foreign_write_after_a_lost_answer_is_a_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lost, key="a", times=1, is_done=True)
    async with world.mounted() as mount:
        await mount.write("a", b"one")
        await trio.sleep(0.3)
        await world.foreign_put("a", b"theirs")
        await mount.sync()
        assert world.files()["a"] == b"theirs"
        assert b"one" in world.files().values()


@simulated
async def test_a_lost_answer_before_a_kill_is_no_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    gate = script.hold("put", "a")
    async with world.mounted() as mount:
        await mount.write("a", b"one")
        await script.waiting.wait()
        mount.kill()
    gate.set()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"a": b"one"}
        assert mount.leftovers() == []


@simulated
async def test_a_lost_answer_of_chmod_keeps_the_file_changeable(tmp_path: Path) -> None:
    """The copy that carries the new mode gives an object of parts another ETag."""
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3 * PART)
        await mount.sync()
        script.fail("copy", lost, key="a", times=1, is_done=True)
        await mount.chmod("a", 0o600)
        await trio.sleep(0.3)
        await mount.change("a", b"y", 5)
        await mount.sync()
        assert world.files()["a"] == b"xxxxxy" + b"x" * (3 * PART - 6)
        assert (await world.metadata("a"))["mode"] == str(0o100600)
        assert mount.fs.uploader.counters["conflicts"] == 0


@simulated
async def test_a_deleted_file_whose_lost_upload_arrived_is_deleted_there_too(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lost, key="a", times=1, is_done=True)
    async with world.mounted() as mount:
        await mount.write("a", b"one")
        await trio.sleep(0.3)
        await mount.unlink("a")
        await mount.sync()
        assert world.files() == {}


@simulated
async def test_a_change_of_a_version_that_somebody_destroyed_is_kept_and_shown(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.foreign_put("big", b"b" * 4 * PART)
    async with world.mounted() as mount:
        fd = await mount.open("big", os.O_WRONLY)
        await mount.pwrite(fd, b"ours", 10)
        await mount.close(fd)
        await world.foreign_put("big", b"theirs")
        with pytest.raises(S3MountError, match="gone"):
            await mount.sync()
        assert world.files() == {"big": b"theirs"}
        assert await mount.read("big") == b"theirs"
        [key] = [key for key in mount.pending() if "conflict" in key]
        assert mount.pending()[key] == "put parked"


@simulated
async def test_with_versions_nothing_of_a_changed_file_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path, versioning="enabled")
    async with world.mounted() as mount:
        await mount.write("big", b"b" * 4 * PART)
        await mount.sync()
        await mount.change("big", b"ours", 10)
        await world.foreign_put("big", b"theirs")
        await mount.sync()
        expected = b"b" * 10 + b"ours" + b"b" * (4 * PART - 14)
        assert sorted(world.files().values()) == sorted([b"theirs", expected])


@simulated
async def test_a_foreign_version_is_a_new_inode_and_the_open_one_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"old" * 3000)
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        fd = await mount.open("a")
        assert await mount.pread(fd, 3, 0) == b"old"
        first = await mount.stat("a")
        await world.foreign_put("a", b"new")
        await trio.sleep(1.1)
        second = await mount.stat("a")
        assert second.st_ino != first.st_ino
        assert await mount.read("a") == b"new"
        assert mount.size(fd) == 9000
        # Never a mixture: it is small enough to have been read whole.
        assert await mount.read_all(fd) == b"old" * 3000
        await mount.close(fd)


@simulated
async def test_with_versions_an_open_file_reads_on_after_a_foreign_write(tmp_path: Path) -> None:
    world = World(tmp_path, versioning="enabled")
    async with world.mounted() as mount:
        await mount.write("a", b"old" * 3000)
        await mount.sync()
        world.cache = tmp_path / "cold"
        mount.kill()
    async with world.mounted() as mount:
        await mount.write("a", b"old!" * 3000)
        await mount.sync()
        fd = await mount.open("a")
        await world.foreign_put("a", b"new")
        await trio.sleep(2)
        assert await mount.read("a") == b"new"
        assert await mount.read_all(fd) == b"old!" * 3000
        await mount.close(fd)


@simulated
async def test_a_foreign_version_that_comes_while_ours_is_being_written_loses_neither(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    async with world.mounted(metadata_ttl_s=0.5) as mount:
        fd = await mount.open("d/a", os.O_RDWR)
        await world.foreign_put("d/a", b"theirs, longer")
        await trio.sleep(1)
        await mount.listdir("d")
        await mount.ftruncate(fd, 0)
        await mount.pwrite(fd, b"ours", 0)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["d/a"] == b"theirs, longer"
        assert b"ours" in world.files().values()


@simulated
async def test_a_foreign_deletion_while_ours_is_being_written_does_not_delete_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    await world.foreign_put("d/other", b"")
    async with world.mounted(metadata_ttl_s=0.5) as mount:
        fd = await mount.open("d/a", os.O_RDWR)
        await world.s3.delete("d/a")
        await trio.sleep(1)
        await mount.listdir("d")
        await mount.ftruncate(fd, 0)
        await mount.pwrite(fd, b"ours", 0)
        await mount.close(fd)
        await mount.sync()
        assert world.files() == {"d/a": b"ours", "d/other": b""}


@pytest.mark.parametrize("versioning", ["off", "enabled"])
def test_chmod_does_not_bring_back_what_somebody_replaced(tmp_path: Path, versioning: str) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path, versioning=versioning)
        async with world.mounted() as mount:
            await mount.write("a", b"ours")
            await mount.sync()
            await mount.chmod("a", 0o600)
            await world.foreign_put("a", b"theirs")
            await mount.sync()
            assert world.files() == {"a": b"theirs"}
            assert await mount.read("a") == b"theirs"
            assert mount.leftovers() == []

    run()


@simulated
async def test_a_rename_does_not_overwrite_a_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"ours" * 1000)
    async with world.mounted() as mount:
        await mount.rename("a", "b")
        await world.foreign_put("b", b"theirs")
        await mount.sync()
        files = world.files()
        assert files.pop("b") == b"theirs"
        assert list(files.values()) == [b"ours" * 1000]
        assert mount.leftovers() == []


@simulated
async def test_a_lost_answer_of_a_rename_is_no_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3 * PART)
        await mount.sync()
        mount.kill()
    world.faults = script = Script()
    script.fail("copy", lost, key="b", times=1, is_done=True)
    async with world.mounted() as mount:
        await mount.rename("a", "b")
        await mount.sync()
        assert world.files() == {"b": b"x" * 3 * PART}
        assert mount.fs.uploader.counters["conflicts"] == 0


@pytest.mark.parametrize("versioning", ["off", "enabled"])
@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("theirs", [b"theirs", None])
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_file_that_somebody_replaces_before_its_rename_arrives_is_no_lasting_trouble(
    tmp_path: Path, versioning: str, is_read: bool, theirs: bytes | None, is_changed: bool
) -> None:
    """Theirs keeps the old name; ours has the new one, where S3 or the cache has its bytes still."""

    @simulated
    async def run() -> None:
        world = World(tmp_path, versioning=versioning)
        await world.foreign_put("a", b"ours" * PART)
        await world.foreign_put("d/b", b"b")
        async with world.mounted(upload_delay_s=5) as mount:
            if is_read:
                await mount.read("a")
            await mount.rename("a", "d/b")
            if is_changed:
                await mount.chmod("d/b", 0o600)
            if theirs is None:
                await world.s3.delete("a")
            else:
                await world.foreign_put("a", theirs)
            await mount.sync()
            files = world.files()
            assert files.get("a") == theirs
            is_kept = is_read or versioning == "enabled"
            assert files["d/b"] == (b"ours" * PART if is_kept else b"b")
            told = [conflict.outcome for conflict in mount.fs.outcomes.conflicts]
            assert told.count("not-moved") == (not is_kept)
            wanted = {"d": None, "d/b": files["d/b"]} | ({"a": theirs} if theirs else {})
            await trio.sleep(2)
            assert await mount.tree() == wanted
            assert mount.leftovers() == []

    run()


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("versioning", ["off", "enabled"])
@pytest.mark.parametrize("how", ["fresh", "twice", "changed", "nested", "before", "written"])
def test_a_folder_whose_files_somebody_replaces_before_its_rename_arrives_is_no_lasting_trouble(
    tmp_path: Path, versioning: str, is_read: bool, how: str
) -> None:
    """Theirs keep the old names; ours have the new ones, where S3 or the cache has their bytes still."""

    @simulated
    async def run() -> None:
        world = World(tmp_path, versioning=versioning)
        inside = "e/" if how == "nested" else ""
        names = [f"{inside}{letter}" for letter in "abc"]
        for name in names:
            await world.foreign_put(f"d/{name}", b"ours" * PART)
        async with world.mounted(upload_delay_s=5) as mount:
            for name in names:
                await mount.stat(f"d/{name}")
                if is_read:
                    await mount.read(f"d/{name}")
            if how == "written":
                await mount.write("d/new", b"new")
            if how != "before":
                await mount.rename("d", "moved")
            if how == "twice":
                await mount.rename("moved", "later")
                await mount.rename("later", "moved")
            if how == "changed":
                await mount.chmod(f"moved/{names[0]}", 0o600)
            await world.foreign_put(f"d/{names[0]}", b"theirs")
            await world.s3.delete(f"d/{names[1]}")
            if how == "before":
                await mount.rename("d", "moved")
            await mount.sync()
            files = world.files()
            is_kept = is_read or versioning == "enabled"
            wanted = {f"moved/{names[2]}": b"ours" * PART, f"d/{names[0]}": b"theirs"}
            if how == "written":
                wanted["moved/new"] = b"new"
            gone = names[:1] if how == "before" else names[:2]
            if is_kept:
                wanted |= {f"moved/{name}": b"ours" * PART for name in gone}
            assert {key: body for key, body in files.items() if body is not None} == wanted
            told = [conflict.outcome for conflict in mount.fs.outcomes.conflicts]
            assert told.count("not-moved") == len(gone) * (not is_kept)
            await trio.sleep(2)
            shown = await mount.tree()
            assert {key: body for key, body in shown.items() if body is not None} == wanted
            assert mount.leftovers() == []

    run()


BASE = bytes(range(256)) * 12
"""Larger than what the changes below write of it, and sent by one request."""


async def append(mount: Mount, path: str) -> bytes:
    """``echo ours >>path`` by a kernel that has its pages: nothing is read."""
    fd = await mount.open(path, os.O_WRONLY | os.O_APPEND)
    await mount.pwrite(fd, b"ours", len(BASE))
    await mount.close(fd)
    return BASE + b"ours"


async def edit(mount: Mount, path: str) -> bytes:
    """Change bytes in the middle, as a program that opened it for writing alone."""
    fd = await mount.open(path, os.O_WRONLY)
    await mount.pwrite(fd, b"ours", 100)
    await mount.close(fd)
    return BASE[:100] + b"ours" + BASE[104:]


async def cut(mount: Mount, path: str) -> bytes:
    """``truncate --size 100``."""
    await mount.truncate(path, 100)
    return BASE[:100]


async def lengthen(mount: Mount, path: str) -> bytes:
    """``truncate --size 4000``."""
    await mount.truncate(path, 4000)
    return BASE.ljust(4000, b"\0")


CHANGES = [append, edit, cut, lengthen]


@pytest.mark.parametrize("change", CHANGES)
def test_a_small_file_changed_in_part_needs_its_base_no_more(
    tmp_path: Path, change: Callable[[Mount, str], Awaitable[bytes]]
) -> None:
    """Somebody replaces it after the close and before it is sent, then a kill comes: both are there."""

    @simulated
    async def play() -> None:
        world = World(tmp_path)
        await world.foreign_put("a", BASE)
        async with world.mounted() as mount:
            ours = await change(mount, "a")
            await world.foreign_put("a", b"theirs")
            mount.kill()
        async with world.mounted() as mount:
            await mount.sync()
            assert sorted(world.files().values()) == sorted([b"theirs", ours])
            assert mount.leftovers() == []

    play()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_a_small_file_replaced_between_open_and_write_is_kept_beside_ours(
    tmp_path: Path, flags: int
) -> None:
    """The bytes of what was opened are here since the open."""

    @simulated
    async def play() -> None:
        world = World(tmp_path)
        await world.foreign_put("a", BASE)
        async with world.mounted() as mount:
            fd = await mount.open("a", flags)
            await world.foreign_put("a", b"theirs")
            await mount.pwrite(fd, b"ours", len(BASE))
            await mount.close(fd)
            await mount.sync()
            assert sorted(world.files().values()) == sorted([b"theirs", BASE + b"ours"])
            assert mount.leftovers() == []

    play()


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_a_small_file_replaced_before_it_is_opened_to_be_changed_is_looked_up_again(
    tmp_path: Path, flags: int
) -> None:
    """The name is believed still: the open meets it, upon which Linux looks anew."""

    @simulated
    async def play() -> None:
        world = World(tmp_path)
        await world.foreign_put("a", BASE)
        async with world.mounted(metadata_ttl_s=60.0) as mount:
            await mount.listdir("")
            await world.foreign_put("a", b"theirs")
            fd = await mount.open("a", flags)
            await mount.pwrite(fd, b" and ours", mount.size(fd))
            await mount.close(fd)
            await mount.sync()
            assert world.files() == {"a": b"theirs and ours"}
            assert mount.leftovers() == []

    play()
