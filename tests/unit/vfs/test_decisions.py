"""A person asks for another try, or gives pending changes up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3mount.errors import NetworkError, RejectedError, S3MountError
from s3mount.spool.journal.states import State
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


def hopeless() -> RejectedError:
    return RejectedError("quota", status=400, code="QuotaExceeded")


@simulated
async def test_retry_sends_what_was_parked_or_waited(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    refusals = [script.fail("put", hopeless, key=key) for key in ("d/a", "d/b", "c")]
    outage = script.fail("put", lambda: NetworkError("no route"), key="e")
    async with world.mounted() as mount:
        await mount.mkdir("d")
        for key in ("d/a", "d/b", "c", "e"):
            await mount.write(key, b"x")
        await trio.sleep(100)
        assert set(mount.pending()) == {"d/a", "d/b", "c", "e"}
        for rule in (*refusals, outage):
            rule.times = 0
        assert sorted(await mount.fs.decisions.retry(["d"])) == ["d/a", "d/b"]
        await trio.sleep(1)
        # The outage's time may have come by itself meanwhile.
        left = set(mount.pending())
        assert {"c"} <= left <= {"c", "e"}
        assert set(await mount.fs.decisions.retry()) == left
        await trio.sleep(1)
        assert mount.pending() == {}
        assert await mount.fs.decisions.retry() == []
        with pytest.raises(S3MountError, match="nothing at d"):
            await mount.fs.decisions.retry(["d"])


@simulated
async def test_discard_shows_what_s3_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/changed", b"stored")
        await mount.write("d/removed", b"stored")
        await mount.write("d/moved", b"stored")
        await mount.sync()
        script.fail("put", hopeless)
        script.fail("copy", hopeless)
        script.fail("delete", hopeless)
        await mount.write("d/changed", b"lost")
        await mount.write("d/new", b"lost")
        await mount.unlink("d/removed")
        await mount.rename("d/moved", "d/elsewhere")
        await mount.write("kept", b"kept")
        await trio.sleep(10)
        before = mount.pending()
        told = await mount.fs.decisions.discard(["d"], is_rehearsal=True)
        assert mount.pending() == before
        assert sorted(await mount.fs.decisions.discard(["d"])) == sorted(told)
        assert "kept" in mount.pending()
        stored = {"d/changed": b"stored", "d/removed": b"stored", "d/moved": b"stored"}
        assert await mount.tree() == {"d": None, "kept": b"kept", **stored}
        script.rules.clear()
        await mount.sync()
        assert world.files() == {"kept": b"kept", **stored}
        assert mount.leftovers() == []


@simulated
async def test_a_discarded_move_brings_the_old_name_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"precious")
        await mount.sync()
        world.faults = script = Script()
        script.fail("copy", hopeless)
        await mount.rename("a", "b")
        await trio.sleep(10)
        assert sorted(await mount.fs.decisions.discard(["b"])) == ["a", "b"]
        script.rules.clear()
        await mount.sync()
        assert world.files() == {"a": b"precious"}
        assert await mount.tree() == {"a": b"precious"}


@simulated
async def test_a_discarded_folder_that_s3_never_had_is_gone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = Script(latency_s=1000.0)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/a", b"1")
        world.faults = None
        await mount.fs.decisions.discard(["d"])
        await trio.sleep(5)
        assert await mount.tree() == {}
        await mount.sync()
        assert world.contents() == {}


@simulated
async def test_a_discarded_upload_leaves_no_parts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        script.fail("complete_multipart", hopeless)
        await mount.write("film.mkv", b"x" * 6 * PART)
        await trio.sleep(10)
        assert mount.spool.changes["film.mkv"].state is State.PARKED
        await mount.fs.decisions.discard(["film.mkv"])
        await trio.sleep(100)
        assert await world.s3.list_uploads("") == []
        assert mount.leftovers() == []
        assert mount.spool.used_bytes == 0


@simulated
async def test_an_open_file_reads_on_after_its_discard(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = Script(latency_s=1000.0)
    async with world.mounted() as mount:
        await mount.write("a", b"lost")
        fd = await mount.open("a", os.O_RDONLY)
        world.faults = None
        await mount.fs.decisions.discard(["a"])
        assert await mount.read_all(fd) == b"lost"
        await mount.close(fd)
        assert mount.spool.live_blobs == {}
        with pytest.raises(S3MountError, match="nothing is pending"):
            await mount.fs.decisions.discard(["a"])


@simulated
async def test_a_held_conflict_given_up_shows_theirs(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(on_conflict="hold") as mount:
        await mount.write("a", b"base")
        await mount.sync()
        await mount.write("a", b"ours")
        await world.foreign_put("a", b"theirs")
        await trio.sleep(10)
        await mount.fs.decisions.discard(["a"])
        assert await mount.read("a") == b"theirs"
        assert mount.pending() == {}


@simulated
async def test_a_moved_file_stays_in_s3_until_what_was_written_to_it_since_is_there(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        for key in ("a", "b"):
            await mount.write(key, b"stored")
        await mount.sync()
        refusals = [script.fail("put", hopeless, key=key) for key in ("c", "d")]
        for old, new in (("a", "c"), ("b", "d")):
            await mount.rename(old, new)
            await mount.close(await mount.open(new, os.O_WRONLY | os.O_TRUNC))
            await mount.change(new, b"rewritten", 0)
        await trio.sleep(100)
        assert world.files() == {"a": b"stored", "b": b"stored"}
        mount.kill()
    async with world.mounted() as mount:
        await trio.sleep(100)
        assert world.files() == {"a": b"stored", "b": b"stored"}
        assert sorted(await mount.fs.decisions.discard(["c"])) == ["a", "c"]
        for rule in refusals:
            rule.times = 0
        await mount.sync()
        assert world.files() == {"a": b"stored", "d": b"rewritten"}
        assert await mount.tree() == world.files()


@simulated
async def test_a_file_that_was_moved_twice_comes_back_under_its_first_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.write("a", b"stored")
        await mount.sync()
        refusal = script.fail("copy", hopeless)
        await mount.rename("a", "b")
        await trio.sleep(10)
        await mount.rename("b", "c")
        await mount.close(await mount.open("c", os.O_WRONLY | os.O_TRUNC))
        script.fail("put", hopeless, key="c")
        await trio.sleep(100)
        assert world.files() == {"a": b"stored"}
        await mount.fs.decisions.discard(["c"])
        refusal.times = 0
        await mount.sync()
        assert world.files() == {"a": b"stored"}
        assert await mount.tree() == world.files()
