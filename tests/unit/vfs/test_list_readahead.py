"""Listings ahead of a walk: few requests, no more than is used, and as exact as single listings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mount.errors import NetworkError
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script


async def put_tree(world: World, folders: int, files: int, top: str = "t") -> None:
    for folder in range(folders):
        for file in range(files):
            await world.foreign_put(f"{top}/d{folder:04}/f{file:04}", b"x")


async def walk(mount: Mount, path: str = "") -> list[str]:
    """What ``find`` does: names, in the order in which they are given, and down into each folder."""
    found = []
    for name in await mount.listdir(path):
        below = f"{path}/{name}".lstrip("/")
        found.append(below)
        if (await mount.node(below)).is_directory:
            found += await walk(mount, below)
    return found


@simulated
async def test_a_walk_costs_a_request_for_a_thousand_keys(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 100, 100)
    async with world.mounted() as mount:
        with world.counting() as asked:
            found = await walk(mount)
        assert len(found) == 1 + 100 + 10_000
        assert asked["list"] <= 20
        assert asked["head"] == 0
        await walk(mount)
        await trio.sleep(1.1)
        with world.counting() as asked:
            assert await walk(mount) == found
        assert asked["list"] <= 20, "once more"


@simulated
async def test_a_walk_is_fast_where_round_trips_are_long(tmp_path: Path) -> None:
    """Counted in round trips: the first folder by itself, then many at once."""
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 300, 100)
    async with world.mounted() as mount:
        started = trio.current_time()
        await walk(mount)
        assert (trio.current_time() - started) / 0.02 < 20


@simulated
async def test_a_short_walk_is_recognised_at_its_first_folder(tmp_path: Path) -> None:
    """Round trips: the top, ``t``, the first folder and a page of what follows, and two for the other pages."""
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 100, 100)
    async with world.mounted() as mount:
        started = trio.current_time()
        await walk(mount)
        assert (trio.current_time() - started) / 0.02 < 5.5


@simulated
async def test_a_store_whose_pages_take_longer_than_the_ttl_is_walked_in_pages_too(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, faults=Script(latency_s=1.5))
    await put_tree(world, 40, 100)
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        with world.counting() as asked:
            assert len(await walk(mount)) == 1 + 40 + 4000
        assert asked["list"] <= 10, "of 42 folders"


class LaterPagesFirst(Script):
    """The further on a flat page begins, the sooner its answer comes."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[str] = []

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        begin = str(arguments.get("start_after") or "")
        if begin:
            self.begins.append(begin)
            await trio.sleep(0.1 - 0.0002 * int(begin[3:7]))
        await super().after(operation, arguments)


@simulated
async def test_what_a_later_page_told_is_not_listed_again_when_it_came_first(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, faults=(faults := LaterPagesFirst()))
    await put_tree(world, 40, 100)
    async with world.mounted() as mount:
        assert len(await walk(mount)) == 1 + 40 + 4000
    assert len(faults.begins) == 5, "the first page, and four more at once"
    assert len(set(faults.begins)) == 5


@simulated
async def test_a_look_into_the_first_folder_alone_lists_one_page_more(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 200, 50)
    async with world.mounted() as mount:
        await mount.listdir("t")
        with world.counting() as asked:
            assert len(await mount.listdir("t/d0000")) == 50
            await trio.sleep(10)
        assert asked["list"] <= 2


@simulated
async def test_a_look_into_one_folder_of_many_lists_no_others(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 200, 50)
    async with world.mounted() as mount:
        with world.counting() as asked:
            assert len(await walk(mount, "t/d0100")) == 50
            await trio.sleep(1)
        assert asked["list"] <= 3


@simulated
async def test_who_stops_early_has_little_listed_in_vain(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 300, 100)
    async with world.mounted() as mount:
        await mount.listdir("t")
        with world.counting() as asked:
            for number in range(4):
                await mount.listdir(f"t/d{number:04}")
            await trio.sleep(10)
        assert asked["list"] <= 6


@simulated
async def test_folders_of_folders_and_a_huge_one_among_small_ones(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    for name in ("a", "b", "c", "d"):
        await put_tree(world, 60, 20, f"top/{name}")
    await put_tree(world, 3, 5, "top/b-small")
    await put_tree(world, 400, 30, "top/huge")
    await put_tree(world, 3, 5, "top/z")
    async with world.mounted() as mount:
        with world.counting() as asked:
            found = await walk(mount)
        expected = {
            parent
            for key in world.files()
            for parent in ["/".join(key.split("/")[:n]) for n in range(1, 5)]
        }
        assert sorted(found) == sorted(expected)
        assert asked["list"] <= 60, "of 650 folders"


@simulated
async def test_names_that_sort_around_the_slash(tmp_path: Path) -> None:
    """In the order of keys ``a-b/`` and ``a.txt`` come before ``a/``, which names alone would not tell."""
    world = World(tmp_path)
    keys = []
    for number in range(30):
        stem = f"t/n{number:02}"
        for key in (
            f"{stem}/x",
            f"{stem}/x.y/z",
            f"{stem}/x/z",
            f"{stem}-b/y",
            f"{stem}.txt",
            f"{stem}.~b/é",
            f"{stem}.é/ü",
            f"{stem}//odd",
            f"{stem}/./odd",
            f"{stem}!/q/r/s",
        ):
            keys.append(key)
            await world.foreign_put(key, b"x")
    async with world.mounted() as mount:
        found = await walk(mount)
    async with world.mounted(metadata_ttl_s=0) as mount:
        assert found == await walk(mount), "without any look ahead"
    assert len(found) == 1 + 30 * (2 + 3 + 2 + 1 + 2 + 2 + 4)


@simulated
async def test_markers_and_what_is_pending_show_in_a_walk(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 40, 10)
    async with world.mounted(upload_delay_s=3600) as mount:
        await mount.mkdir("t/d0020/new")
        await mount.write("t/d0021/new", b"1")
        await mount.unlink("t/d0022/f0003")
        await mount.rename("t/d0023/f0001", "t/d0024/moved")
        await mount.chmod("t/d0025/f0001", 0o600)
        await trio.sleep(2)
        found = await walk(mount)
    expected = {"t", *(f"t/d{number:04}" for number in range(40)), *world.files()}
    expected |= {"t/d0020/new", "t/d0021/new", "t/d0024/moved"}
    expected -= {"t/d0022/f0003", "t/d0023/f0001"}
    assert sorted(found) == sorted(expected)


@simulated
async def test_what_is_finished_while_a_walk_lists_is_shown_as_it_is(tmp_path: Path) -> None:
    """The page shows the state before; by the time it is taken, the upload is done and forgotten."""
    world = World(tmp_path)
    await put_tree(world, 20, 5)
    async with world.mounted() as mount:
        await mount.write("t/d0010/mine", b"1")
        await mount.unlink("t/d0011/f0002")
        world.faults = script = Script()
        await trio.sleep(0.01)
        await mount.listdir("t")
        gate = script.hold("list", "t/")
        for number in range(2):
            await mount.listdir(f"t/d{number:04}")
        await script.waiting.wait()
        await mount.sync()
        gate.set()
        script.gates.clear()
        assert "mine" in await mount.listdir("t/d0010")
        assert "f0002" not in await mount.listdir("t/d0011")


@simulated
async def test_foreign_changes_are_seen_within_the_ttl_during_a_walk(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 50, 5)
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        await mount.listdir("t")
        for number in range(3):
            await mount.listdir(f"t/d{number:04}")
        await world.foreign_put("t/d0030/late", b"x")
        await world.s3.delete("t/d0031/f0001")
        await trio.sleep(1.05)
        assert "late" in await mount.listdir("t/d0030")
        assert "f0001" not in await mount.listdir("t/d0031")
        await world.s3.delete_many([f"t/d0032/f{number:04}" for number in range(5)])
        await trio.sleep(1.05)
        assert not await mount.exists("t/d0032")


@simulated
async def test_a_store_that_fails_is_told_by_the_one_listing_that_needs_it(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 50, 5)
    async with world.mounted() as mount:
        await mount.listdir("t")
        for number in range(3):
            await mount.listdir(f"t/d{number:04}")
        world.faults = script = Script()
        rule = script.fail("list", lambda: NetworkError("unreachable"), times=1)
        await trio.sleep(1.1)
        failed = 0
        for number in range(3, 50):
            try:
                assert len(await mount.listdir(f"t/d{number:04}")) == 5
            except NetworkError:
                failed += 1
        assert rule.times == 0
        assert failed <= 1


@simulated
async def test_a_walk_that_ends_just_as_its_answer_comes_takes_nothing_of_it(
    tmp_path: Path,
) -> None:
    """In one step of the scheduler: the page is here, and the walk is over."""
    world = World(tmp_path)
    await put_tree(world, 20, 5)
    async with world.mounted() as mount:
        await mount.listdir("t")
        world.faults = script = Script()
        gate = script.hold("list", "t/")
        await mount.listdir("t/d0000")
        await script.waiting.wait()
        gate.set()
        mount.fs.directories.forget_ahead()
        script.gates.clear()
        await trio.testing.wait_all_tasks_blocked()
        assert len(await walk(mount)) == 1 + 20 + 100


@simulated
async def test_a_fault_in_what_is_listed_ahead_costs_the_guess_alone(
    tmp_path: Path, unexpected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.02))
    await put_tree(world, 30, 5)
    async with world.mounted() as mount:
        expected = await walk(mount)
        for place in (
            "TreeWalk._take_in",
            "TreeWalk.take",
            "ListReadahead._trace",
            "TreeWalk._pump",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"s3mount.vfs.listing.list_readahead.{place}", _broken)
                await trio.sleep(2)
                assert await walk(mount) == expected, place
            assert unexpected, place
            assert all("RuntimeError: broken" in told for told in unexpected)
            assert len(unexpected) < 40, "not asked for again with every look"
            unexpected.clear()


def _broken(*args: object) -> None:
    raise RuntimeError("broken")
