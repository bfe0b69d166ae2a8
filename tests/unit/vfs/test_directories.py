"""Listings, lookups and attributes: exact while uploads are under way, and few requests."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from s3mount.errors import EngineError, NetworkError
from s3mount.tree.node import Node
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script


async def entries(mount: Mount) -> list[str]:
    return await mount.listdir("d")


@pytest.mark.parametrize("action", ["upload", "delete", "rename", "rewrite"])
@pytest.mark.parametrize("when", ["before the effect", "after the effect"])
def test_a_listing_that_races_with_an_upload_shows_every_name_once(
    tmp_path: Path, action: str, when: str
) -> None:
    """LIST is answered late: it shows what S3 had before, or after, the upload that ends meanwhile."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        for name in ("old", "other"):
            await world.foreign_put(f"d/{name}", b"1")
        script = Script()
        async with world.mounted(metadata_ttl_s=0.01) as mount:
            assert await entries(mount) == ["old", "other"]
            world.faults = script
            gate = None
            if when == "before the effect":
                gate = script.hold("list", "d/")
            expected = {
                "upload": ["new", "old", "other"],
                "delete": ["other"],
                "rename": ["new", "other"],
                "rewrite": ["old", "other"],
            }[action]
            if action == "upload":
                await mount.write("d/new", b"2")
            elif action == "delete":
                await mount.unlink("d/old")
            elif action == "rename":
                await mount.rename("d/old", "d/new")
            else:
                await mount.write("d/old", b"22")
            found: list[list[str]] = []

            async def look() -> None:
                found.append(await entries(mount))

            async with trio.open_nursery() as nursery:
                await trio.sleep(0.1)
                nursery.start_soon(look)
                await trio.sleep(2.0)
                if gate is not None:
                    gate.set()
            script.gates.clear()
            assert found == [expected]
            for _ in range(10):
                assert await entries(mount) == expected
                await trio.sleep(0.3)
            if action == "rewrite":
                assert (await mount.stat("d/old")).st_size == 2

    run()


@simulated
async def test_what_is_pending_is_shown_by_a_new_mount_whose_listing_races_with_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.sync()
        await mount.write("d/a", b"1", mode=0o600)
        mount.kill()
    world.faults = script = Script()
    gate = script.hold("list", "d/")
    async with world.mounted() as mount:
        found: list[list[str]] = []

        async def look() -> None:
            found.append(await entries(mount))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(1)
            assert world.files() == {"d/a": b"1"}
            gate.set()
        assert found == [["a"]]
        assert stat.S_IMODE((await mount.stat("d/a")).st_mode) == 0o600


@simulated
async def test_a_folder_of_foreign_files_costs_no_head(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(300):
        await world.foreign_put(f"d/{number:04}", b"x" * number)
    async with world.mounted() as mount:
        with world.counting() as asked:
            for name in await entries(mount):
                assert (await mount.stat(f"d/{name}")).st_size == int(name)
        assert asked["head"] == 0
        assert asked["list"] <= 2


@simulated
async def test_a_folder_of_ours_is_headed_in_one_batch_and_never_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        for number in range(200):
            await mount.write(f"d/{number:04}", b"x", mode=0o640)
        await mount.sync()
    world.cache = tmp_path / "cold"
    world.faults = script = Script(latency_s=0.1)
    await trio.sleep(10)
    for expected in (200, 0):
        async with world.mounted() as mount:
            with world.counting() as asked:
                started = trio.current_time()
                for name in await entries(mount):
                    assert stat.S_IMODE((await mount.stat(f"d/{name}")).st_mode) == 0o640
                took_s = trio.current_time() - started
            assert expected <= asked["head"] <= expected + 3, "the folders' own markers come on top"
            assert took_s < 2.0, "64 at a time, not one after the other"
    assert script.latency_s == 0.1


@simulated
async def test_attributes_survive_a_remount_and_another_machine(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d", 0o700)
        await mount.write("d/a", b"x", mode=0o4755)
        await mount.utime("d/a", 1_234_567_890_987_654_321)
        await mount.utime("d", 1_111_111_111_000_000_001)
        await mount.symlink("a", "d/link")
        await mount.sync()
    world.cache = tmp_path / "cold"
    world.state = tmp_path / "other"
    async with world.mounted() as mount:
        found = await mount.stat("d/a")
        assert stat.S_IMODE(found.st_mode) == 0o4755
        assert found.st_mtime_ns == 1_234_567_890_987_654_321
        assert stat.S_IMODE((await mount.stat("d")).st_mode) == 0o700
        assert stat.S_ISLNK((await mount.stat("d/link")).st_mode)
        assert await mount.readlink("d/link") == "a"


@simulated
async def test_chmod_of_a_foreign_file_keeps_what_others_stored(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x", {"mtime": "1500000000.5", "owner-tool": "rclone"})
    async with world.mounted() as mount:
        await mount.chmod("d/a", 0o600)
        assert stat.S_IMODE((await mount.stat("d/a")).st_mode) == 0o600
        await mount.sync()
        metadata = await world.metadata("d/a")
        assert metadata["mode"] == str(0o100600)
        assert metadata["owner-tool"] == "rclone"
        assert metadata["mtime"] == "1500000000.500000000"
        assert stat.S_IMODE((await mount.stat("d/a")).st_mode) == 0o600


@simulated
async def test_keys_that_are_no_path_are_left_alone_and_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    odd = ("d//x", "d/./y", "d/../z", "d/" + "n" * 300, "d/both", "d/both/below")
    for key in odd:
        await world.foreign_put(key, b"x")
    async with world.mounted() as mount:
        assert await entries(mount) == ["both"]
        assert await mount.listdir("d/both") == ["below"]
        assert (await mount.fs.status())["ignored_keys"] == 5
        await mount.rmtree("d/both")
        with pytest.raises(OSError, match="empty"):
            await mount.rmdir("d")
        await mount.sync()
        assert set(odd) - {"d/both/below"} <= set(world.contents())


@simulated
async def test_a_foreign_deletion_is_seen_after_the_ttl(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x")
    await world.foreign_put("d/b", b"x")
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        assert await entries(mount) == ["a", "b"]
        await world.s3.delete("d/a")
        await trio.sleep(1.1)
        assert await entries(mount) == ["b"]
        assert not await mount.exists("d/a")


@simulated
async def test_a_lookup_in_a_folder_that_lists_slowly_asks_for_the_one_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x")
    async with world.mounted() as mount:
        await mount.listdir()
        world.faults = script = Script()
        gate = script.hold("list", "d/")
        started = trio.current_time()
        assert await mount.exists("d/a")
        assert not await mount.exists("d/none")
        assert trio.current_time() - started < 5
        await world.foreign_put("d/late", b"y")
        assert await mount.exists("d/late")
        gate.set()
        script.gates.clear()
        await trio.sleep(0.01)
        assert await mount.exists("d/late"), "the listing that began before knows less"


@simulated
async def test_without_s3_what_was_listed_is_believed_and_new_files_are_taken(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x")
    async with world.mounted() as mount:
        assert await mount.read("d/a") == b"x"
        await mount.mkdir("d/e")
        assert await entries(mount) == ["a", "e"]
        world.faults = script = Script()
        for operation in ("list", "head", "get", "put", "delete"):
            script.fail(operation, lambda: NetworkError("unreachable"))
        await trio.sleep(10)
        await mount.write("d/b", b"new")
        assert await entries(mount) == ["a", "b", "e"]
        assert await mount.read("d/b") == b"new"
        world.faults = None
        await mount.sync()
        assert world.files() == {"d/a": b"x", "d/b": b"new"}


@simulated
async def test_a_folder_whose_new_mode_is_pending_shows_it_after_a_kill(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/a", b"x")
        await mount.sync()
        await mount.chmod("d", 0o711)
        mount.kill()
    world.faults = Script(latency_s=0.2)
    async with world.mounted() as mount:
        await mount.listdir()
        assert stat.S_IMODE((await mount.stat("d")).st_mode) == 0o711
        await mount.sync()
        assert stat.S_IMODE((await mount.stat("d")).st_mode) == 0o711
        assert stat.S_IMODE(int((await world.metadata("d/"))["mode"])) == 0o711


@simulated
async def test_a_second_mount_learns_that_the_top_stores_attributes_now(tmp_path: Path) -> None:
    world, state, cache = World(tmp_path), tmp_path / "state-b", tmp_path / "cache-b"
    async with world.mounted() as reader:
        assert await reader.listdir() == []
        await world.foreign_put(".s3mount/probe", b"")
        await trio.sleep(2)
        assert await reader.listdir() == []
        world.state, world.cache = state, cache
        async with world.mounted() as writer:
            await writer.mkdir("d", 0o711)
            await writer.write("f", b"x", mode=0o600)
            await writer.sync()
        await trio.sleep(2)
        assert await reader.listdir() == ["d", "f"]
        assert stat.S_IMODE((await reader.stat("d")).st_mode) == 0o711
        assert stat.S_IMODE((await reader.stat("f")).st_mode) == 0o600


@simulated
async def test_an_engine_that_cannot_be_kept_running_is_one_error(tmp_path: Path) -> None:
    """Not a group of them, which nobody would take for what it is."""
    world = World(tmp_path)
    await world.foreign_put("d/a", b"a")
    async with world.mounted() as mount:

        async def refuse(*_: object, **__: object) -> None:
            raise EngineError("the engine process died 8 times over one request")

        mount.store.list_page = refuse  # type: ignore[method-assign, assignment]
        with pytest.raises(EngineError):
            await mount.exists("d")


@simulated
async def test_a_moved_directory_is_not_shown_under_its_old_name_by_what_arrives_late(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted(metadata_ttl_s=0.0, upload_delay_s=60.0) as mount:
        script.fail("delete", lambda: NetworkError("no route"))
        gate = script.hold("put", "x/f")
        await mount.mkdir("x")
        await mount.write("x/f", b"1")
        mount.fs.uploader.send_now(mount.spool.changes["x/f"])
        await script.waiting.wait()
        await mount.rename("x", "y")
        gate.set()
        await trio.sleep(1)
        assert world.files() == {"x/f": b"1"}
        assert await mount.tree() == {"y": None, "y/f": b"1"}


@simulated
async def test_an_entry_that_is_replaced_while_it_is_looked_at_is_looked_for_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    await world.foreign_put("a", b"first", {"mode": str(0o100640)})
    async with world.mounted(attributes="always", metadata_ttl_s=5.0) as mount:
        directories = mount.fs.directories
        root = mount.fs.state.nodes.root
        await directories.look(root, "a")
        gate = script.hold("get", "a")
        found: list[Node | None] = []

        async def look() -> None:
            found.append(await directories.lookup_known(root, "a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await script.waiting.wait()
            await world.foreign_put("a", b"second", {"mode": str(0o100600)})
            await trio.sleep(10)
            await directories.refresh(root)
            gate.set()
        (node,) = found
        assert node is not None
        assert node is await directories.lookup(root, "a")
        assert (node.size, node.attributes.mode) == (6, 0o100600)
