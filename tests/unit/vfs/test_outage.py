"""While S3 is known to be away: what is known locally is answered at once, and local work goes on."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from s3mount.errors import NetworkError, S3MountError
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script

OPERATIONS = ("list", "head", "get", "fetch", "put", "copy", "delete", "create_multipart")
TOOK_S = 1.0
"""What a request costs that finds nobody."""


@contextmanager
def away(world: World, mount: Mount, *, is_known: bool = True) -> Iterator[Script]:
    """S3 cannot be reached; with ``is_known`` the store has said so."""
    before, store = world.faults, mount.fs.store
    down = Script(latency_s=2 * TOOK_S)
    for operation in OPERATIONS:
        down.fail(operation, lambda: NetworkError("nobody answers"))
    world.faults = down
    if is_known:
        vars(store)["outage"] = "nobody answers"
        store.on_outage("nobody answers")
    try:
        yield down
    finally:
        world.faults = before
        if is_known:
            vars(store)["outage"] = ""
            store.on_outage("")


async def looked_around(mount: Mount) -> list[object]:
    """What a look at all that is known shows."""
    shown: list[object] = []
    for folder in ("", "theirs", "own"):
        names = await mount.listdir(folder)
        sizes = [(await mount.stat(f"{folder}/{name}")).st_size for name in names]
        shown.append((names, sizes))
    shown.append(await mount.exists("theirs/none"))
    return shown


@simulated
async def test_what_is_known_is_answered_without_waiting(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    for number in range(5):
        await world.foreign_put(f"theirs/f{number}", b"x" * number)
    async with world.mounted() as mount:
        await mount.mkdir("own")
        await mount.write("own/a", b"mine")
        await mount.listdir("theirs")
        # From now on the folder counts as one whose files carry attributes.
        await mount.write("theirs/new", b"new")
        await mount.sync()
        before = await looked_around(mount)
        await trio.sleep(60)
        with away(world, mount):
            for _ in range(20):
                began = trio.current_time()
                assert await looked_around(mount) == before
                assert trio.current_time() - began < TOOK_S
                await trio.sleep(7)
        assert await looked_around(mount) == before


@simulated
async def test_what_was_never_listed_is_an_error_not_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    await world.foreign_put("theirs/f", b"x")
    async with world.mounted() as mount:
        await mount.listdir("")
        with away(world, mount):
            for _ in range(3):
                with pytest.raises(S3MountError):
                    await mount.listdir("theirs")
                with pytest.raises(S3MountError):
                    await mount.exists("theirs/f")
        assert await mount.listdir("theirs") == ["f"]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_listed_file_is_overwritten_and_keeps_what_is_stored_with_it(
    tmp_path: Path, *, is_known: bool
) -> None:
    @simulated
    async def play() -> None:
        world = World(tmp_path, faults=Script())
        kept = {"mode": str(stat.S_IFREG | 0o640), "uid": "7", "theirs": "yes"}
        await world.foreign_put("d/f", b"before", kept)
        async with world.mounted() as mount:
            assert await mount.listdir("d") == ["f"]
            with away(world, mount, is_known=is_known):
                await mount.write("d/f", b"after")
                assert await mount.read("d/f") == b"after"
            await mount.sync()
            found = await mount.stat("d/f")
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o640, 7)
        assert world.files()["d/f"] == b"after"
        metadata = await world.metadata("d/f")
        assert metadata["theirs"] == "yes"
        assert (int(metadata["mode"]), metadata["uid"]) == (stat.S_IFREG | 0o640, "7")

    play()


@simulated
async def test_what_was_overwritten_meanwhile_is_renamed_and_killed_and_keeps_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, faults=Script())
    await world.foreign_put("d/f", b"before", {"theirs": "yes"})
    async with world.mounted() as mount:
        assert await mount.listdir("d") == ["f"]
        with away(world, mount):
            await mount.write("d/f", b"after")
            await mount.rename("d/f", "d/g")
            mount.kill()
    world.die()
    async with world.mounted() as mount:
        await mount.sync()
    assert world.files() == {"d/g": b"after"}
    assert (await world.metadata("d/g"))["theirs"] == "yes"


@simulated
async def test_a_mode_that_is_set_later_counts_more_than_the_stored_one(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    await world.foreign_put("f", b"before", {"mode": str(stat.S_IFREG | 0o640), "theirs": "yes"})
    async with world.mounted(upload_delay_s=60) as mount:
        await mount.listdir("")
        with away(world, mount):
            await mount.write("f", b"after")
            with pytest.raises(S3MountError):
                await mount.chmod("f", 0o600)
        await mount.chmod("f", 0o600)
        await mount.sync()
    metadata = await world.metadata("f")
    assert (int(metadata["mode"]), metadata["theirs"]) == (stat.S_IFREG | 0o600, "yes")


@pytest.mark.parametrize("is_known", [False, True])
def test_a_change_of_a_part_of_what_is_not_here_is_accepted(tmp_path: Path, is_known: bool) -> None:
    """The rest of the file comes when S3 is back."""

    @simulated
    async def play() -> None:
        world = World(tmp_path, faults=Script())
        await world.foreign_put("a", b"base")
        await world.foreign_put("b", b"base")
        async with world.mounted(metadata_ttl_s=60.0) as mount:
            await mount.listdir("")
            with away(world, mount, is_known=is_known):
                fd = await mount.open("a", os.O_WRONLY | os.O_APPEND)
                await mount.pwrite(fd, b" and ours", 4)
                await mount.close(fd)
                await mount.truncate("b", 2)
            await mount.sync()
            assert world.files() == {"a": b"base and ours", "b": b"ba"}
            assert mount.leftovers() == []

    play()


@simulated
async def test_theirs_meanwhile_is_a_conflict_not_an_inheritance(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    await world.foreign_put("f", b"before", {"theirs": "yes"})
    async with world.mounted() as mount:
        await mount.listdir("")
        with away(world, mount):
            await mount.write("f", b"mine")
            await world.foreign_put("f", b"theirs", {"theirs": "later"})
        await mount.sync()
    files = world.files()
    assert files.pop("f") == b"theirs"
    assert list(files.values()) == [b"mine"]


@simulated
async def test_an_end_is_noticed_and_what_waits_goes_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    async with world.mounted() as mount:
        await mount.listdir("")
        with away(world, mount):
            for number in range(10):
                await mount.write(f"f{number}", b"x")
            await trio.sleep(300)
            assert (await mount.fs.status())["outage"] == "nobody answers"
        assert (await mount.fs.status())["outage"] == ""
        await trio.sleep(10)
        assert mount.fs.pending() == (0, 0), "not only when the next try was due"
    assert len(world.files()) == 10


@simulated
async def test_a_read_of_what_is_not_here_is_an_error(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    await world.foreign_put("f", b"content")
    async with world.mounted() as mount:
        await mount.listdir("")
        with away(world, mount), pytest.raises((OSError, S3MountError)) as raised:
            await mount.read("f")
        assert getattr(raised.value, "errno", errno.EIO) == errno.EIO
        assert await mount.read("f") == b"content"
