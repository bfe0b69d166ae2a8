"""Reading ahead across files: what is fetched before it is opened, and what is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from s3mount.vfs.file_readahead import LISTS_AHEAD_MAX
from s3mount.vfs.walk_order import WINDOW_FILES_MAX
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script

ROUND_TRIP_S = 0.02
KIB = 1 << 10


def body_of(key: str, size: int = 4 * KIB) -> bytes:
    """What the object of this key holds."""
    return (key.encode() * (size // len(key) + 1))[:size]


def distant(tmp_path: Path, keys: list[str], size: int = 4 * KIB) -> World:
    """A bucket with these objects, one round trip away."""
    world = World(tmp_path, faults=Script(latency_s=ROUND_TRIP_S))
    for key in keys:
        world.put_now(key, body_of(key, size))
    return world


@contextmanager
def timed() -> Iterator[list[float]]:
    """How many round trips the block took."""
    start, taken = trio.current_time(), [0.0]
    yield taken
    taken[0] = (trio.current_time() - start) / ROUND_TRIP_S


async def read_file(mount: Mount, path: str) -> None:
    """Open, read and close one file, and see that it is the right one."""
    descriptor = await mount.open(path)
    size = (await mount.stat(path)).st_size
    data = b""
    while len(data) < size:
        data += await mount.pread(descriptor, size - len(data), len(data))
    await mount.close(descriptor)
    assert data == body_of(path, size)


async def walk(mount: Mount, top: str, *, files_first: bool = False) -> int:
    """Read all files as tar does, or as os.walk's users do; how many."""
    names = await mount.listdir(top)
    nodes = {name: await mount.node(f"{top}/{name}") for name in names}
    if files_first:
        names.sort(key=lambda name: nodes[name].is_directory)
    count = 0
    for name in names:
        if nodes[name].is_directory:
            count += await walk(mount, f"{top}/{name}", files_first=files_first)
        else:
            await read_file(mount, f"{top}/{name}")
            count += 1
    return count


async def settled() -> None:
    """Let what was asked for ahead arrive."""
    await trio.sleep(20 * ROUND_TRIP_S)


@simulated
async def test_files_of_a_folder_are_there_when_they_are_opened(tmp_path: Path) -> None:
    world = distant(tmp_path, [f"d/{number:04}" for number in range(2000)])
    async with world.mounted() as mount:
        with world.counting() as asked, timed() as round_trips:
            assert await walk(mount, "d") == 2000
        assert asked["get"] == 2000
        assert asked["head"] == 0
        assert round_trips[0] < 2000 / 10
        assert mount.fs.prefetches.counters["unused"] == 0


@pytest.mark.parametrize("files_first", [False, True])
def test_a_walk_is_followed_from_folder_to_folder(tmp_path: Path, files_first: bool) -> None:
    """Few files in each folder, with subfolders between them by name."""

    @simulated
    async def run() -> None:
        keys = []
        for folder in range(40):
            keys += [f"d/f{folder:02}/{name}" for name in ("a", "b/c", "b/d", "e", "g/h", "z")]
        world = distant(tmp_path, keys)
        async with world.mounted() as mount:
            with world.counting() as asked, timed() as round_trips:
                assert await walk(mount, "d", files_first=files_first) == len(keys)
            assert asked["get"] == len(keys)
            # Alone: a round trip for each file, and for each of the 121 listings.
            assert round_trips[0] < (len(keys) + 121) / 2

    run()


@simulated
async def test_opens_in_no_order_fetch_what_is_opened(tmp_path: Path) -> None:
    keys = [f"d/{number:04}" for number in range(1000)]
    world = distant(tmp_path, keys)
    opened = random.Random(5).sample(keys, 200)
    async with world.mounted() as mount:
        await mount.listdir("d")
        with world.counting() as asked:
            for key in opened:
                await read_file(mount, key)
            await settled()
        assert len(opened) <= asked["get"] <= 1.2 * len(opened)


@simulated
async def test_a_walk_that_ends_is_not_followed_any_more(tmp_path: Path) -> None:
    keys = [f"d/{number:05}" for number in range(5000)]
    world = distant(tmp_path, keys)
    async with world.mounted() as mount:
        await mount.listdir("d")
        for key in keys[:100]:
            await read_file(mount, key)
        await settled()
        with world.counting() as asked:
            for key in random.Random(6).sample(keys[1000:], 50):
                await read_file(mount, key)
            await settled()
        assert asked["get"] <= 1.2 * 50
        counters = mount.fs.prefetches.counters
        assert counters["asked"] <= 100 + WINDOW_FILES_MAX


@simulated
async def test_one_file_in_a_folder_fetches_a_handful_at_most(tmp_path: Path) -> None:
    keys = [f"d/{number:04}" for number in range(500)]
    world = distant(tmp_path, keys)
    async with world.mounted() as mount:
        await mount.listdir("d")
        with world.counting() as asked:
            await read_file(mount, keys[0])
            await settled()
        assert 1 <= asked["get"] <= 5
        with world.counting() as asked:
            await read_file(mount, keys[300])
            await settled()
        assert asked["get"] == 1


@simulated
async def test_every_third_file_is_a_walk_that_goes_ahead_of_nobody(tmp_path: Path) -> None:
    """Most of what it would fetch is never opened."""
    keys = [f"d/{number:04}" for number in range(900)]
    world = distant(tmp_path, keys)
    async with world.mounted() as mount:
        await mount.listdir("d")
        with world.counting() as asked:
            for key in keys[::3]:
                await read_file(mount, key)
            await settled()
        assert asked["get"] <= 300 + 30


@simulated
async def test_several_readers_share_one_walk(tmp_path: Path) -> None:
    """As xargs -P does: files are opened a little out of order, by many programs."""
    keys = [f"d/{number:04}" for number in range(800)]
    world = distant(tmp_path, keys)
    async with world.mounted() as mount:
        await mount.listdir("d")
        left = iter(keys)
        delays = random.Random(7)

        async def reader() -> None:
            for key in left:
                await trio.sleep(delays.random() * ROUND_TRIP_S / 10)
                await read_file(mount, key)

        with world.counting() as asked, timed() as round_trips:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(reader)
        assert asked["get"] == len(keys)
        assert round_trips[0] < 800 / 4 / 4


@simulated
async def test_what_waits_for_its_reader_is_bounded(tmp_path: Path) -> None:
    """The budget of what is fetched ahead is 1 MiB here, and files are of 100 KiB."""
    keys = [f"d/{number:03}" for number in range(100)]
    world = distant(tmp_path, keys, size=100 * KIB)
    async with world.mounted(prefetch_bytes_max=1 << 20) as mount:
        prefetches = mount.fs.prefetches
        await mount.listdir("d")
        for key in keys:
            await read_file(mount, key)
            assert prefetches.held_bytes <= 1 << 20
            held = mount.fs.reader.statistics()
            assert held["cache_prefetch_bytes"] <= 1 << 20
        assert prefetches.held_bytes == 0


@simulated
async def test_nothing_is_fetched_ahead_without_a_budget(tmp_path: Path) -> None:
    keys = [f"d/{number:03}" for number in range(50)]
    world = distant(tmp_path, keys)
    async with world.mounted(prefetch_bytes_max=0) as mount:
        with timed() as round_trips:
            assert await walk(mount, "d") == 50
        assert round_trips[0] >= 50


@simulated
async def test_of_a_replaced_file_nothing_wrong_is_shown(tmp_path: Path) -> None:
    """Replaced between listing and reading ahead: the prefetch fails, and open() is told, as without it."""
    keys = [f"d/{number:02}" for number in range(30)]
    world = distant(tmp_path, keys)
    async with world.mounted(metadata_ttl_s=3600.0) as mount:
        await mount.listdir("d")
        world.put_now(keys[10], b"somebody else")
        for key in keys[:10]:
            await read_file(mount, key)
        await settled()
        # ESTALE, upon which the name is looked up anew, as Linux does.
        descriptor = await mount.open(keys[10])
        assert await mount.pread(descriptor, 4 * KIB, 0) == b"somebody else"
        await mount.close(descriptor)
        for key in keys[11:]:
            await read_file(mount, key)


@simulated
async def test_what_is_local_is_not_asked_for(tmp_path: Path) -> None:
    keys = [f"d/{number:03}" for number in range(300)]
    world = distant(tmp_path, keys)
    async with world.mounted() as mount:
        assert await walk(mount, "d") == 300
        await trio.sleep(1.0)
        with world.counting() as asked:
            assert await walk(mount, "d") == 300
        assert asked["get"] == 0
    async with world.mounted() as mount:
        with world.counting() as asked:
            assert await walk(mount, "d") == 300
        assert asked["get"] == 0


@simulated
async def test_where_attributes_are_stored_the_bytes_bring_them(tmp_path: Path) -> None:
    """A folder that the walk comes to later: GETs answer what HEADs would have been asked for."""
    folders, files = 6, 40
    world = World(tmp_path)
    async with world.mounted() as mount:
        for folder in range(folders):
            await mount.makedirs(f"d/{folder}")
            for number in range(files):
                key = f"d/{folder}/{number:02}"
                await mount.write(key, body_of(key))
                await mount.chmod(key, 0o640)
        await mount.fs.wait_uploaded()
    world.faults = Script(latency_s=ROUND_TRIP_S)
    world.cache = tmp_path / "another cache"
    world.state = world.next_state()
    async with world.mounted() as mount:
        with world.counting() as asked:
            assert await walk(mount, "d") == folders * files
        assert asked["get"] == folders * files
        # The first folder's, which nobody could know would be read, and the folders' markers.
        assert asked["head"] <= files + 3 * folders
        assert (await mount.stat("d/5/07")).st_mode & 0o777 == 0o640


@simulated
async def test_the_first_look_at_a_small_file_brings_its_bytes(tmp_path: Path) -> None:
    """One round trip from its name to its first byte, also where attributes are stored with it."""
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/file", body_of("d/file"))
        await mount.chmod("d/file", 0o600)
        await mount.fs.wait_uploaded()
    world.faults = Script(latency_s=ROUND_TRIP_S)
    world.cache = tmp_path / "another cache"
    world.state = world.next_state()
    async with world.mounted() as mount:
        await mount.listdir("")
        await mount.fs.directories.refresh(await mount.node("d"))
        with world.counting() as asked, timed() as round_trips:
            assert (await mount.stat("d/file")).st_mode & 0o777 == 0o600
            await read_file(mount, "d/file")
        assert dict(asked) == {"get": 1}
        assert round_trips[0] < 1.5


@simulated
async def test_folders_ahead_are_listed_a_few_at_a_time(tmp_path: Path) -> None:
    world = distant(tmp_path, [f"d/{folder:03}/file" for folder in range(300)])
    running = most = 0

    def note(text: str) -> None:
        nonlocal running, most
        if text.startswith("list "):
            running += -1 if text.endswith(": done") else 1
            most = max(most, running)

    world.on_request = note
    async with world.mounted() as mount:
        with timed() as round_trips:
            assert await walk(mount, "d") == 300
    assert most <= LISTS_AHEAD_MAX + 2
    assert round_trips[0] < 2 * 300 / 3
