"""What a person chose: what becomes of conflicts, when fsync and close return, when refusals are parked."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from s3mount.errors import (
    AccessDeniedError,
    ConflictError,
    NetworkError,
    RejectedError,
    S3MountError,
    StoreError,
)
from s3mount.spool.upload.uploader import REFUSALS_MAX
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


def denied() -> AccessDeniedError:
    return AccessDeniedError("no", status=403, code="AccessDenied", request_id="R1")


async def a_conflict(world: World, mount: Mount, *, ours: bytes = b"ours") -> None:
    """Write ``a`` after somebody else did, unseen."""
    await mount.write("a", b"base")
    await mount.sync()
    await mount.write("a", ours)
    await world.foreign_put("a", b"theirs")


@simulated
async def test_a_conflict_is_an_event_that_status_tells(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await a_conflict(world, mount)
        await mount.sync()
        [event] = (await mount.fs.status())["conflicts"]
        assert (event["key"], event["outcome"]) == ("a", "kept-both")
        assert world.files()[event["kept_as"]] == b"ours"


@simulated
async def test_overwrite_lets_ours_win_and_counts_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="overwrite") as mount:
        await a_conflict(world, mount)
        await mount.sync()
        assert world.files() == {"a": b"ours"}
        assert mount.fs.uploader.counters["overwritten"] == 1
        [event] = (await mount.fs.status())["conflicts"]
        assert (event["outcome"], event["kept_as"]) == ("overwritten", "")
        await mount.write("a", b"again")
        await world.foreign_put("a", b"theirs too")
        await mount.sync()
        assert world.files() == {"a": b"again"}
        assert mount.fs.uploader.counters["overwritten"] == 2, "each one is seen"


@simulated
async def test_overwrite_without_the_bytes_below_holds(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="overwrite") as mount:
        await world.foreign_put("big", b"b" * 6 * PART)
        await mount.change("big", b"ours", 10)
        await world.foreign_put("big", b"theirs" * PART)
        with pytest.raises(S3MountError, match="'big'"):
            await mount.sync()
        assert world.files() == {"big": b"theirs" * PART}, "no mixture of two versions"
        assert mount.spool.changes["big"].held


@simulated
async def test_hold_keeps_ours_until_a_person_decides(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="hold") as mount:
        await a_conflict(world, mount)
        with pytest.raises(S3MountError, match="'a'"):
            await mount.sync()
        await trio.sleep(1000)
        assert world.files() == {"a": b"theirs"}, "no time makes it go"
        assert await mount.read("a") == b"ours"
        [shown] = [
            each for each in (await mount.fs.status())["pending"]["list"] if each["key"] == "a"
        ]
        assert (shown["state"], shown["conflict"]) == ("parked", True)
        mount.kill()
    async with world.mounted(on_conflict="hold") as mount:
        await trio.sleep(1000)
        assert world.files() == {"a": b"theirs"}, "nor does a restart"
        mount.fs.uploader.retry(mount.spool.changes["a"])
        await mount.sync()
        files = world.files()
        assert files.pop("a") == b"theirs"
        assert list(files.values()) == [b"ours"]


@simulated
async def test_a_held_conflict_can_overwrite(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="hold") as mount:
        await a_conflict(world, mount)
        await trio.sleep(10)
        mount.fs.uploader.retry(mount.spool.changes["a"], overwrite=True)
        await mount.sync()
        assert world.files() == {"a": b"ours"}
        assert mount.fs.uploader.counters["overwritten"] == 1


@simulated
async def test_a_held_conflict_that_solved_itself_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="hold") as mount:
        await a_conflict(world, mount)
        await trio.sleep(10)
        await world.s3.delete("a")
        mount.fs.uploader.retry(mount.spool.changes["a"])
        await mount.sync()
        assert world.files() == {"a": b"ours"}


@simulated
async def test_a_write_to_a_held_file_is_held_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="hold") as mount:
        await a_conflict(world, mount)
        await trio.sleep(10)
        await mount.write("a", b"ours, newer")
        await trio.sleep(10)
        assert world.files() == {"a": b"theirs"}
        assert mount.spool.changes["a"].held
        assert await mount.read("a") == b"ours, newer"


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_held_file_that_goes_leaves_theirs(tmp_path: Path, how: str) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted(on_conflict="hold") as mount:
            await a_conflict(world, mount)
            await trio.sleep(10)
            if how == "moved":
                await mount.rename("a", "b")
            else:
                await mount.unlink("a")
            await mount.sync()
            ours = {"b": b"ours"} if how == "moved" else {}
            assert world.files() == {"a": b"theirs", **ours}
            await trio.sleep(5)
            assert await mount.tree() == {"a": b"theirs", **ours}

    run()


@simulated
async def test_a_409_is_looked_at_and_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        script.fail("put", lambda: ConflictError("busy", status=409), key="a", times=2)
        await mount.write("a", b"ours")
        await mount.sync()
        assert world.files() == {"a": b"ours"}
        assert mount.fs.uploader.counters["conflicts"] == 0


@simulated
async def test_a_409_of_somebody_elses_write_keeps_both(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await a_conflict(world, mount)
        script.fail("put", lambda: ConflictError("busy", status=409), key="a", times=1)
        with world.counting() as asked:
            await mount.sync()
        assert sorted(world.files().values()) == [b"ours", b"theirs"]
        assert asked["put"] <= 3, "no second try of what is known to be refused"


@simulated
async def test_a_409_after_our_own_write_arrived_is_no_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        busy = lambda: ConflictError("busy", status=409)  # noqa: E731
        script.fail("put", busy, key="a", times=1, is_done=True)
        await mount.write("a", b"ours")
        await mount.sync()
        assert world.files() == {"a": b"ours"}
        assert mount.fs.uploader.counters["conflicts"] == 0


@simulated
async def test_refusals_are_parked_after_few_tries_with_the_request_id(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    refusal = script.fail("put", denied, key="a", times=1000)
    hopeless = script.fail("put", lambda: RejectedError("key too long", status=400), key="b")
    async with world.mounted() as mount:
        await mount.write("a", b"1")
        await mount.write("b", b"2")
        await trio.sleep(100)
        assert 1000 - refusal.times == REFUSALS_MAX
        shown = {each["key"]: each for each in (await mount.fs.status())["pending"]["list"]}
        assert shown["a"]["state"] == shown["b"]["state"] == "parked"
        assert shown["b"]["attempts"] == 1, "what can never succeed is not repeated"
        assert "request-id=R1" in shown["a"]["error"]
        assert "403 AccessDenied" in shown["a"]["error"]
        refusal.times = hopeless.times = 0
        for change in list(mount.spool.changes.values()):
            mount.fs.uploader.retry(change)
        await trio.sleep(1)
        assert world.files() == {"a": b"1", "b": b"2"}


@simulated
async def test_an_outage_of_hours_drops_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    outage = script.fail("put", lambda: NetworkError("no route"), key="a")
    async with world.mounted() as mount:
        await mount.write("a", b"patient")
        await trio.sleep(2 * 3600)
        assert mount.pending()["a"] == "put queued", "it waits for its next try, unparked"
        outage.times = 0
        await trio.sleep(61)
        assert world.files() == {"a": b"patient"}


@simulated
async def test_fsync_s3_returns_when_s3_has_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(fsync="s3", upload_delay_s=3600.0) as mount:
        fd = await mount.create("a")
        await mount.pwrite(fd, b"one", 0)
        await mount.fsync(fd)
        assert world.files() == {"a": b"one"}
        await mount.pwrite(fd, b"two", 3)
        await mount.fsync(fd)
        assert world.files() == {"a": b"onetwo"}
        with world.counting() as asked:
            await mount.fsync(fd)
            await mount.close(fd)
            await mount.sync()
        assert asked["put"] <= 1, "nothing was left to be sent but the top's marker"


@pytest.mark.parametrize("error", [denied, lambda: NetworkError("no route")])
def test_fsync_s3_tells_the_error_and_keeps_the_file(
    tmp_path: Path, error: type[StoreError]
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.faults = script = Script()
        fault = script.fail("put", error, key="a")
        async with world.mounted(fsync="s3") as mount:
            fd = await mount.create("a")
            await mount.pwrite(fd, b"one", 0)
            with pytest.raises(OSError, match="no") as raised:
                await mount.fsync(fd)
            assert raised.value.errno == errno.EIO
            assert await mount.read_all(fd) == b"one"
            fault.times = 0
            await mount.fsync(fd)
            assert world.files() == {"a": b"one"}

    run()


@simulated
async def test_fsync_s3_of_a_parked_file_fails_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lambda: RejectedError("quota", status=400), key="a")
    async with world.mounted(fsync="s3") as mount:
        fd = await mount.create("a")
        await mount.pwrite(fd, b"one", 0)
        with pytest.raises(OSError, match="quota"):
            await mount.fsync(fd)
        await mount.close(fd)
        await trio.sleep(10)
        script.latency_s = 1000.0
        fd = await mount.open("a")
        with trio.fail_after(1), pytest.raises(OSError, match="quota"):
            await mount.fsync(fd)


@simulated
async def test_fsync_s3_goes_on_under_a_new_name_and_ends_with_the_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted(fsync="s3") as mount:
        for what in ("renamed", "removed"):
            gate = script.hold("put", what)
            fd = await mount.create(what)
            await mount.pwrite(fd, b"x", 0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.fsync, fd)
                await script.waiting.wait()
                if what == "renamed":
                    await mount.rename("renamed", "new")
                else:
                    await mount.unlink("removed")
                gate.set()
            if what == "renamed":
                assert world.files()["new"] == b"x"
            await mount.close(fd)
        await mount.sync()
        assert world.files() == {"new": b"x"}


@simulated
async def test_close_through_returns_when_s3_has_it_or_with_the_error(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted(write_through=True, upload_delay_s=3600.0) as mount:
        await mount.write("a", b"x" * 5 * PART)
        assert world.files() == {"a": b"x" * 5 * PART}
        fault = script.fail("put", denied, key="b")
        with pytest.raises(OSError, match="no") as raised:
            await mount.write("b", b"mine")
        assert raised.value.errno == errno.EIO
        assert await mount.read("b") == b"mine"
        fault.times = 0
        await mount.sync()
        assert world.files()["b"] == b"mine"


@simulated
async def test_who_waits_for_s3_is_let_go_when_the_mount_ends(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.hold("put", "a")
    async with world.mounted(fsync="s3") as mount:
        fd = await mount.create("a")
        await mount.pwrite(fd, b"x", 0)

        async def end() -> None:
            await script.waiting.wait()
            mount.fs.release_waiters()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(OSError, match="the mount ends"):
                await mount.fsync(fd)
