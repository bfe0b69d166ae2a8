"""Renames, removals and folders: what S3 is asked to do, and that content is right at every moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
import trio

from s3mount.errors import NetworkError
from s3mount.testing.memory_store import NoFaults
from s3mount.vfs.namespace.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


@simulated
async def test_a_pending_file_is_moved_without_a_copy(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        asked: list[str] = []
        world.on_request = asked.append
        await mount.write("a", b"x")
        await mount.rename("a", "b")
        await mount.rename("b", "c")
        await mount.sync()
        puts = [each.split()[1] for each in asked if each.startswith("put") and "done" not in each]
        assert sorted(puts) == ["key=.s3mount/", "key=c"]
        assert world.requests["copy"] == world.requests["delete"] == 0
        assert world.files() == {"c": b"x"}


@simulated
async def test_a_stored_file_is_copied_inside_s3_and_then_deleted(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"x" * 3 * PART, {"theirs": "kept"})
    seen: list[set[str]] = []
    async with world.mounted() as mount:
        fd = await mount.open("a")
        world.on_request = lambda text: seen.append(set(world.files()))
        await mount.rename("a", "b")
        for _ in range(20):
            await trio.sleep(0.1)
            assert await mount.read("b") == b"x" * 3 * PART
            assert await mount.read_all(fd) == b"x" * 3 * PART
        await mount.sync()
        await mount.close(fd)
        assert {"a"} in seen
        assert {"a", "b"} in seen
        assert set() not in seen
        assert world.files() == {"b": b"x" * 3 * PART}
        assert world.requests["copy"] == 1
        assert world.requests["upload_part"] == world.requests["create_multipart"] == 0
        assert (await world.metadata("b"))["theirs"] == "kept"


@simulated
async def test_a_chain_of_renames_is_one_copy(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"x")
    async with world.mounted() as mount:
        await mount.rename("a", "b")
        await mount.rename("b", "c")
        await mount.sync()
        assert world.files() == {"c": b"x"}
        assert world.requests["copy"] == 1


class FirstRenameLate(NoFaults):
    """S3 takes the first RenameObject in only when ``rest`` has gone by; ``is_lost``: and nobody hears of it."""

    def __init__(self, *, is_lost: bool = False) -> None:
        self._is_lost = is_lost
        self.waits = trio.Event()
        self.rest = trio.Event()
        self.lost = trio.Event()

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if operation == "rename" and not self.waits.is_set():
            self.waits.set()
            await self.rest.wait()

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "rename" and self._is_lost:
            self._is_lost = False
            self.lost.set()
            raise NetworkError("the answer is lost")


@simulated
async def test_a_file_moved_on_while_s3_renames_it_has_no_name_of_between(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.bucket.habits.renames = True
    world.faults = late = FirstRenameLate()
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        await mount.write("a", b"x" * 3 * PART)
        await mount.sync()
        await mount.rename("a", "b")
        await late.waits.wait()
        await mount.rename("b", "c")
        await trio.sleep(3)
        late.rest.set()
        for _ in range(40):
            await trio.sleep(0.1)
            assert await mount.listdir() == ["c"]
        await mount.sync()
        assert world.files() == {"c": b"x" * 3 * PART}


@pytest.mark.parametrize("is_lost", [False, True], ids=["late", "answer lost"])
def test_a_file_that_goes_back_while_s3_renames_it_is_not_deleted(
    tmp_path: Path, is_lost: bool
) -> None:
    """S3 has it under the new name by then, so that is not simply to be deleted."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.bucket.habits.renames = True
        world.faults = late = FirstRenameLate(is_lost=is_lost)
        async with world.mounted() as mount:
            await mount.write("a", b"x" * 3 * PART)
            await mount.sync()
            await mount.rename("a", "b")
            await late.waits.wait()
            await mount.rename("b", "a")
            await trio.sleep(3)
            late.rest.set()
            await mount.sync()
            assert world.files() == {"a": b"x" * 3 * PART}
            assert await mount.read("a") == b"x" * 3 * PART

    run()


@pytest.mark.parametrize("is_changed", [False, True], ids=["as it was", "changed in part"])
@pytest.mark.parametrize("is_replaced", [False, True], ids=["unlinked", "replaced"])
def test_an_open_file_that_s3_renamed_is_readable_when_it_loses_its_name(
    tmp_path: Path, is_changed: bool, is_replaced: bool
) -> None:
    """Nobody heard of the rename, and nothing is pending any more that tells of it."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.bucket.habits.renames = True
        body = b"x" * 3 * PART
        await world.foreign_put("a", body)
        world.faults = late = FirstRenameLate(is_lost=True)
        async with world.mounted() as mount:
            await mount.write("new", b"new")
            await mount.rename("a", "b")
            await late.waits.wait()
            late.rest.set()
            await late.lost.wait()
            if is_changed:
                await mount.change("b", b"new", 0)
                body = b"new" + body[3:]
            fd = await mount.open("b")
            await (mount.rename("new", "b") if is_replaced else mount.unlink("b"))
            await trio.sleep(30)
            assert await mount.read_all(fd) == body
            await mount.close(fd)
            await mount.sync()
            assert world.files() == {"b" if is_replaced else "new": b"new"}

    # As if it were too large to be fetched by open().
    with mock.patch("s3mount.vfs.contents.INLINE_BODY_BYTES_MAX", 0):
        run()


class RenameAndCopiesLate(FirstRenameLate):
    """Copies are slower than whatever is put meanwhile."""

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await super().before(operation, arguments)
        if operation == "copy":
            await trio.sleep(20)


@pytest.mark.parametrize("is_lost", [False, True], ids=["late", "answer lost"])
def test_what_takes_the_name_to_which_s3_renames_a_file_does_not_destroy_it(
    tmp_path: Path, is_lost: bool
) -> None:
    """Under that name S3 has the only copy of the file by then, with an ETag that looks like our own try."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.bucket.habits.renames = True
        world.faults = late = RenameAndCopiesLate(is_lost=is_lost)
        async with world.mounted() as mount:
            await mount.write("a", b"x" * 3 * PART)
            await mount.write("b", b"old")
            await mount.sync()
            await mount.rename("a", "b")
            await late.waits.wait()
            await mount.rename("b", "a")
            await mount.write("new", b"new")
            await mount.rename("new", "b")
            await trio.sleep(3)
            late.rest.set()
            await mount.sync()
            assert world.files() == {"a": b"x" * 3 * PART, "b": b"new"}
            assert await mount.read("a") == b"x" * 3 * PART

    run()


@simulated
async def test_there_and_back_again_asks_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x")
    async with world.mounted() as mount:
        await mount.rename("d/a", "d/b")
        await mount.rename("d/b", "d/a")
        await mount.sync()
        assert world.files() == {"d/a": b"x"}
        assert world.requests["copy"] == world.requests["delete"] == 0


@simulated
async def test_a_swap_by_a_third_name_swaps(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"A" * 3000)
    await world.foreign_put("b", b"B" * 3000)
    async with world.mounted() as mount:
        await mount.rename("a", "t")
        await mount.rename("b", "a")
        await mount.rename("t", "b")
        assert await mount.tree() == {"a": b"B" * 3000, "b": b"A" * 3000}
        await mount.sync()
        assert world.files() == {"a": b"B" * 3000, "b": b"A" * 3000}
        assert await mount.tree() == {"a": b"B" * 3000, "b": b"A" * 3000}
        assert mount.leftovers() == []


@pytest.mark.parametrize("cycle", [3, 4, 6])
def test_files_that_move_in_a_longer_circle_arrive(tmp_path: Path, cycle: int) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        for number in range(cycle):
            await world.foreign_put(f"f{number}", b"%d" % number * 3000)
        async with world.mounted() as mount:
            await mount.rename("f0", "t")
            for number in range(1, cycle):
                await mount.rename(f"f{number}", f"f{number - 1}")
            await mount.rename("t", f"f{cycle - 1}")
            await mount.sync()
            expected = {f"f{n}": b"%d" % ((n + 1) % cycle) * 3000 for n in range(cycle)}
            assert world.files() == expected

    run()


@pytest.mark.parametrize("states", ["stored", "pending", "mixed"])
def test_exchange(tmp_path: Path, states: str) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted() as mount:
            await mount.write("a", b"A" * 3000, mode=0o600)
            if states != "pending":
                await mount.sync()
            await mount.write("b", b"B" * 3 * PART, mode=0o640)
            if states == "stored":
                await mount.sync()
            await mount.rename("a", "b", RENAME_EXCHANGE)
            assert await mount.tree() == {"a": b"B" * 3 * PART, "b": b"A" * 3000}
            await mount.sync()
            assert world.files() == {"a": b"B" * 3 * PART, "b": b"A" * 3000}
            assert (await world.metadata("a"))["mode"] == str(0o100640)
            assert (await world.metadata("b"))["mode"] == str(0o100600)
            assert mount.leftovers() == []

    run()


@simulated
async def test_exchanged_files_that_are_then_changed_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    a, b = b"A" * 3 * PART, b"B" * 3 * PART
    await world.foreign_put("a", a)
    await world.foreign_put("b", b)
    async with world.mounted() as mount:
        fds = [await mount.open(name, os.O_RDWR) for name in "ab"]
        await mount.rename("a", "b", RENAME_EXCHANGE)
        for fd in fds:
            await mount.pwrite(fd, b"new", 5)
            await mount.close(fd)
        with trio.fail_after(1000):
            await mount.sync()
        assert world.files() == {"b": a[:5] + b"new" + a[8:], "a": b[:5] + b"new" + b[8:]}
        assert mount.leftovers() == []


@simulated
async def test_what_must_be_copied_from_a_key_goes_before_what_replaces_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"A" * 3000)
    await world.foreign_put("b", b"B" * 3000)
    async with world.mounted() as mount:
        await mount.rename("a", "b", RENAME_EXCHANGE)
        await mount.write("a", b"fresh")
        await mount.write("b", b"fresh too")
        await mount.sync()
        assert world.files() == {"a": b"fresh", "b": b"fresh too"}
        await mount.rename("a", "b", RENAME_EXCHANGE)
        await mount.write("a", b"again")
        await mount.sync()
        assert world.files() == {"a": b"again", "b": b"fresh"}


@simulated
async def test_noreplace_and_bad_flags(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"A")
    await world.foreign_put("b", b"B")
    async with world.mounted() as mount:
        for flags, number in ((RENAME_NOREPLACE, errno.EEXIST), (4, errno.EINVAL)):
            with pytest.raises(OSError, match=r".") as caught:
                await mount.rename("a", "b", flags)
            assert caught.value.errno == number
        with pytest.raises(OSError, match=r".") as caught:
            await mount.rename("a", "missing", RENAME_EXCHANGE)
        assert caught.value.errno == errno.ENOENT
        await mount.rename("a", "c", RENAME_NOREPLACE)
        assert sorted(await mount.tree()) == ["b", "c"]


@simulated
async def test_a_reader_keeps_what_a_rename_replaced(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(metadata_ttl_s=0.5) as mount:
        await mount.write("config", b"old" * 1000)
        await mount.sync()
        mount.kill()
    world.cache = tmp_path / "cold"
    async with world.mounted(metadata_ttl_s=0.5) as mount:
        fd = await mount.open("config")
        await mount.write(".config.tmp", b"new" * 1000)
        await mount.rename(".config.tmp", "config")
        await mount.sync()
        assert world.files() == {"config": b"new" * 1000}
        assert await mount.read_all(fd) == b"old" * 1000
        assert await mount.read("config") == b"new" * 1000
        await mount.close(fd)
        assert world.requests["copy"] == 0
        assert mount.leftovers() == []


@simulated
async def test_an_open_file_only_in_s3_is_readable_until_closed(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = bytes(range(256)) * 200
    await world.foreign_put("a", content)
    async with world.mounted() as mount:
        fd = await mount.open("a")
        await mount.unlink("a")
        await mount.sync()
        assert world.files() == {}
        assert await mount.read_all(fd) == content
        await mount.close(fd)
        assert mount.leftovers() == []


@simulated
async def test_an_open_file_that_was_written_and_unlinked_works_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        fd = await mount.create("t")
        await mount.pwrite(fd, b"x" * 5000, 0)
        await mount.unlink("t")
        await mount.pwrite(fd, b"y", 4999)
        assert await mount.read_all(fd) == b"x" * 4999 + b"y"
        assert not await mount.exists("t")
        await mount.close(fd)
        await mount.sync()
        assert world.files() == {}
        assert mount.leftovers() == []


@simulated
async def test_a_rename_while_the_file_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    gate = script.hold("put", "a")
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3000)
        await script.waiting.wait()
        await mount.rename("a", "b")
        gate.set()
        await mount.sync()
        assert world.files() == {"b": b"x" * 3000}
        assert mount.leftovers() == []


@simulated
async def test_an_unlink_while_the_file_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    gate = script.hold("put", "a")
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3000)
        await script.waiting.wait()
        await mount.unlink("a")
        gate.set()
        await mount.sync()
        assert world.files() == {}
        assert mount.leftovers() == []


@simulated
async def test_a_folder_moves_with_all_that_is_stored_and_pending(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/foreign/deep/file", b"1", {"mtime": "1500000000"})
    await world.foreign_put("d/foreign/file", b"2")
    async with world.mounted() as mount:
        await mount.mkdir("d/ours")
        await mount.write("d/ours/stored", b"3")
        await mount.sync()
        await mount.write("d/ours/pending", b"4")
        await mount.change("d/foreign/file", b"!", 1)
        await mount.mkdir("d/empty")
        await mount.rename("d", "e")
        expected = {
            "e": None,
            "e/empty": None,
            "e/foreign": None,
            "e/foreign/deep": None,
            "e/foreign/deep/file": b"1",
            "e/foreign/file": b"2!",
            "e/ours": None,
            "e/ours/pending": b"4",
            "e/ours/stored": b"3",
        }
        assert await mount.tree() == expected
        await mount.sync()
        assert {k: v for k, v in expected.items() if v is not None} == world.files()
        assert not [key for key in world.contents() if key.startswith("d/")]
        assert (await world.metadata("e/foreign/deep/file"))["mtime"] == "1500000000"
        await trio.sleep(3)
        assert await mount.tree() == expected
        assert mount.leftovers() == []


@simulated
async def test_a_folder_replaces_an_empty_one_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        for path in ("a", "b", "full", "full/x"):
            await mount.mkdir(path)
        await mount.write("a/f", b"1")
        await mount.sync()
        for target, number in (("full", errno.ENOTEMPTY), ("a/sub", errno.EINVAL)):
            with pytest.raises(OSError, match=r".") as caught:
                await mount.rename("a", target)
            assert caught.value.errno == number
        await mount.rename("a", "b")
        await mount.sync()
        assert set(world.contents()) == {"b/", "b/f", "full/", "full/x/"}
        await mount.unlink("b/f")
        await mount.rmdir("b")
        await mount.sync()
        assert set(world.contents()) == {"full/", "full/x/"}


@simulated
async def test_a_folder_removed_and_made_again_twice(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/f", b"1")
        await mount.sync()
        for _ in range(2):
            await mount.rmtree("d")
            await mount.mkdir("d")
        await mount.write("d/f", b"2")
        await mount.sync()
        assert world.contents() == {"d/": b"", "d/f": b"2"}
        for _ in range(2):
            await mount.rmtree("d")
            await mount.mkdir("d")
        await mount.rmtree("d")
        await mount.sync()
        assert world.contents() == {}
        assert await mount.listdir() == []


@simulated
async def test_a_folders_marker_is_deleted_after_all_that_is_below(tmp_path: Path) -> None:
    world = World(tmp_path)
    order: list[str] = []
    world.on_request = lambda text: order.append(text) if text.startswith("delete") else None
    async with world.mounted() as mount:
        await mount.makedirs("d/e")
        for number in range(5):
            await mount.write(f"d/e/{number}", b"x")
        await mount.sync()
        await mount.rmtree("d")
        await mount.sync()
    done = [
        text.split("key=")[1].split(":")[0].split()[0] for text in order if text.endswith("done")
    ]
    assert done[-2:] == ["d/e/", "d/"]
    assert len(done) == 7


@simulated
async def test_a_removed_folder_with_foreign_files_is_not_removed(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.sync()
        await world.foreign_put("d/theirs", b"x")
        await trio.sleep(2)
        with pytest.raises(OSError, match=r".") as caught:
            await mount.rmdir("d")
        assert caught.value.errno == errno.ENOTEMPTY


@simulated
async def test_names_that_are_too_long_or_taken(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("a", b"x")
    async with world.mounted() as mount:
        for path, number in (
            ("a", errno.EEXIST),
            ("a/b", errno.ENOTDIR),
            ("no/such", errno.ENOENT),
            ("n" * 256, errno.ENAMETOOLONG),
            (".s3mount", errno.EPERM),
        ):
            with pytest.raises(OSError, match=r".") as caught:
                await mount.create(path)
            assert caught.value.errno == number, path
        deep = "/".join(["d" * 200] * 5)
        await mount.makedirs(deep)
        with pytest.raises(OSError, match=r".") as caught:
            await mount.create(f"{deep}/{'f' * 100}")
        assert caught.value.errno == errno.ENAMETOOLONG
