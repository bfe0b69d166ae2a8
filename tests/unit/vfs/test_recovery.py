"""After kill -9 at any moment: what was closed or synced arrives, once, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3mount import crashpoints
from s3mount.errors import S3MountError
from s3mount.s3.checksums import BLOCK_BYTES
from s3mount.spool.journal.changes import blob_id_of
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


@simulated
async def test_what_was_closed_arrives_after_a_kill(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/small", b"small", mode=0o600)
        await mount.write("d/big", b"b" * 5 * PART)
        await mount.symlink("small", "d/link")
        mount.kill()
    assert world.contents() == {}
    async with world.mounted() as mount:
        assert await mount.tree() == {
            "d": None,
            "d/big": b"b" * 5 * PART,
            "d/link": b"small",
            "d/small": b"small",
        }
        await mount.sync()
        assert world.files() == {"d/small": b"small", "d/big": b"b" * 5 * PART, "d/link": b"small"}
        assert (await world.metadata("d/small"))["mode"] == str(0o100600)
        assert mount.leftovers() == []


@simulated
async def test_what_was_synced_arrives_though_never_closed(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        fd = await mount.create("db")
        await mount.pwrite(fd, b"committed", 0)
        await mount.fsync(fd)
        mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"db": b"committed"}


@simulated
async def test_fsync_of_a_file_without_a_name_works(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        fd = await mount.create("db")
        await mount.pwrite(fd, b"x", 0)
        await mount.unlink("db")
        await mount.fsync(fd)
        assert await mount.read_all(fd) == b"x"
        await mount.close(fd)
        assert mount.spool.live_blobs == {}


@simulated
async def test_an_upload_cut_by_a_kill_goes_on_where_it_was(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script(latency_s=1.0)
    content = b"".join(bytes([n]) * PART for n in range(20))
    async with world.mounted(uploads_max=2) as mount:
        await mount.write("film.mkv", content)
        await trio.sleep(8)
        mount.kill()
    sent = world.requests["upload_part"]
    assert 8 < sent < 20
    script.latency_s = 0
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"film.mkv": content}
        assert world.requests["upload_part"] <= 20 + 2
        assert world.requests["create_multipart"] == 1
        assert mount.leftovers() == []


@simulated
async def test_a_write_after_a_restart_takes_back_the_part_that_an_earlier_run_sent(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script(latency_s=1.0)
    async with world.mounted() as mount:
        await mount.write("film.mkv", b"x" * 8 * PART)
        await trio.sleep(4)
        mount.kill()
    assert world.requests["upload_part"] >= 4
    async with world.mounted() as mount:
        await mount.change("film.mkv", b"new", 10)
        script.latency_s = 0
        await mount.sync()
        assert world.files()["film.mkv"] == b"x" * 10 + b"new" + b"x" * (8 * PART - 13)


@simulated
async def test_a_completed_upload_whose_answer_a_kill_took_is_not_sent_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.hold("complete_multipart", "film.mkv")
    async with world.mounted() as mount:
        await mount.write("film.mkv", b"x" * 8 * PART)
        await script.waiting.wait()
        mount.kill()
    world.faults = None
    async with world.mounted() as mount:
        await mount.sync()
        assert world.requests["upload_part"] == 8
        assert world.files() == {"film.mkv": b"x" * 8 * PART}
        assert mount.leftovers() == []


@simulated
async def test_an_upload_that_nobody_goes_on_with_is_aborted_at_the_next_start(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        fd = await mount.create("film.mkv")
        await mount.pwrite(fd, b"x" * 6 * PART, 0)
        await trio.sleep(1)
        world.faults = Script(latency_s=1000.0)
        await mount.unlink("film.mkv")
        mount.kill()
    assert len(await world.s3.list_uploads("")) == 1
    world.faults = None
    async with world.mounted() as mount:
        await trio.sleep(1)
        assert await world.s3.list_uploads("") == []
        assert mount.spool.journal.uploads() == []


@simulated
async def test_another_part_size_after_the_restart_sends_the_right_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script(latency_s=1.0)
    content = b"".join(bytes([n]) * PART for n in range(8))
    async with world.mounted() as mount:
        await mount.write("film.mkv", content)
        await trio.sleep(4)
        mount.kill()
    script.latency_s = 0
    async with world.mounted(part_bytes=3 * PART // 2) as mount:
        await mount.sync()
        assert world.files() == {"film.mkv": content}
        assert mount.leftovers() == []


@simulated
async def test_a_truncate_that_was_not_closed_does_not_stop_the_upload(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3000)
        fd = await mount.open("a", os.O_RDWR)
        await mount.ftruncate(fd, 100)
        mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"a": b"x" * 100}


@simulated
async def test_a_lost_blob_is_reported_and_nothing_is_overwritten_by_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"good")
        await mount.write("b", b"good")
        await mount.sync()
        world.faults = Script(latency_s=100.0)
        await mount.write("a", b"bad")
        await mount.write("b", b"better")
        [blob_id] = [blob_id_of(c) for c in mount.spool.changes.values() if c.key == "a"]
        mount.kill()
    (world.state / "blobs" / blob_id).unlink()
    world.faults = None
    async with world.mounted() as mount:
        with pytest.raises(S3MountError, match="'a'"):
            await mount.sync()
        assert world.files() == {"a": b"good", "b": b"better"}


@simulated
async def test_a_damaged_journal_row_leaves_the_others_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"1")
        await mount.write("b", b"2")
        mount.spool.journal._database.execute("UPDATE change SET body = x'c1' WHERE key = 'a'")
        mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"a": b"1", "b": b"2"}, "its blob's label told the same"
        [damage] = mount.spool.damages
        assert (damage.lost_rows, damage.adopted) == (("a",), ("a",))
        assert mount.leftovers() == []


@simulated
async def test_moves_are_finished_after_a_kill(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        for name in "abc":
            await mount.write(f"d/{name}", name.encode())
        await mount.sync()
        await mount.write("d/new", b"new")
        await mount.rename("d", "e")
        mount.kill()
    async with world.mounted() as mount:
        expected = {"e/a": b"a", "e/b": b"b", "e/c": b"c", "e/new": b"new"}
        assert await mount.tree() == {"e": None, **expected}
        await mount.sync()
        assert world.contents() == {"e/": b"", **expected}


@simulated
async def test_a_rename_over_a_file_that_is_rewritten_before_the_copy_survives_a_kill(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"a" * 3000)
        await mount.sync()
        await mount.rename("a", "b")
        fd = await mount.open("b", os.O_RDWR | os.O_TRUNC)
        await mount.pwrite(fd, b"part", 0)
        await trio.sleep(2)
        mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"b": b"part"}
        assert mount.leftovers() == []


@simulated
async def test_a_kill_between_a_write_and_its_journal_row_sends_what_the_file_shows(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script(latency_s=1.0)

    def step(name: str) -> None:
        if name == "part: taken back":
            mount.kill()

    with crashpoints.listening(step):
        async with world.mounted() as mount:
            await mount.write("film.mkv", b"x" * 8 * PART)
            await trio.sleep(4)
            await mount.change("film.mkv", b"new", 10)
    script.latency_s = 0
    async with world.mounted() as mount:
        shown = await mount.read("film.mkv")
        await mount.sync()
        assert world.files()["film.mkv"] == shown


@simulated
async def test_what_was_written_after_the_row_is_not_taken_for_what_s3_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script(latency_s=4.0)
    async with world.mounted() as mount:
        await mount.write("a", b"one" * 500)
        # S3 has it two seconds before the mount hears of that.
        while not world.files():  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        fd = await mount.open("a", os.O_RDWR)
        await mount.ftruncate(fd, 3)
        mount.kill()
    script.latency_s = 0
    async with world.mounted() as mount:
        shown = await mount.read("a")
        assert shown == b"one"
        await mount.sync()
        assert world.files() == {"a": shown}


@simulated
async def test_base_bytes_that_a_power_cut_took_from_a_synced_file_are_fetched_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    # A base that one request brings whole is here before fsync returns, and forced with it.
    rest = 2 * PART_BYTES
    await world.foreign_put("db", b"b" * (3000 + rest))
    async with world.mounted() as mount:
        fd = await mount.open("db", os.O_RDWR)
        await mount.pwrite(fd, b"new", 1000)
        await mount.fsync(fd)
        # Reading it brings the rest of it here.
        assert await mount.read_all(fd) == b"b" * 1000 + b"new" + b"b" * (1997 + rest)
        await mount.pwrite(fd, b"more", 2000)
        await mount.close(fd)
        blob = next(iter(mount.spool.live_blobs.values()))
        mount.kill()
    path = world.state / "blobs" / blob.id
    data = bytearray(path.read_bytes())
    data[:1000] = bytes(1000)
    path.write_bytes(data)
    world.boot += 1
    async with world.mounted() as mount:
        expected = b"b" * 1000 + b"new" + b"b" * 997 + b"more" + b"b" * (996 + rest)
        assert await mount.read("db") == expected
        await mount.sync()
        assert world.files() == {"db": expected}


@simulated
async def test_what_was_appended_before_a_kill_is_sound_after_the_next_one_too(
    tmp_path: Path,
) -> None:
    """The upload that begins in between tells the journal of a longer file, and of its checksums."""
    world = World(tmp_path)
    script = Script()
    head, tail = os.urandom(2 * BLOCK_BYTES), os.urandom(3 * BLOCK_BYTES)
    async with world.mounted(part_bytes=BLOCK_BYTES, upload_delay_s=1000) as mount:
        await mount.write("a", head)
        fd = await mount.open("a", os.O_RDWR)
        await mount.pwrite(fd, tail, len(head))
        mount.kill()
    world.faults = script
    script.hold("upload_part", "a")
    async with world.mounted(part_bytes=BLOCK_BYTES) as mount:
        await script.waiting.wait()
        mount.kill()
    world.faults = None
    for upload in await world.s3.list_uploads(""):
        await world.s3.abort_multipart("a", upload.upload_id)
    async with world.mounted(part_bytes=BLOCK_BYTES) as mount:
        await mount.sync()
        assert world.files() == {"a": head + tail}


@simulated
async def test_a_copy_that_nobody_heard_of_is_ours_also_when_it_was_changed_since(
    tmp_path: Path,
) -> None:
    """Under another ETag, as S3 gives the copy of an object of parts."""
    world = World(tmp_path)
    world.faults = script = Script()
    content = os.urandom(4 * PART)
    async with world.mounted() as mount:
        fd = await mount.create("a")
        await mount.pwrite(fd, content, 0)
        # Its upload begins while it is written: what is stored with it tells no time of its end.
        await trio.sleep(1)
        await mount.close(fd)
        await mount.sync()
    async with world.mounted() as mount:
        script.hold("copy", "b")
        await mount.rename("a", "b")
        await script.waiting.wait()
        assert set(world.files()) == {"a", "b"}
        mount.kill()
    world.faults = Script(latency_s=5.0)
    async with world.mounted() as mount:
        await mount.truncate("b", 3 * PART + 7)
        await mount.sync()
        assert world.files() == {"b": content[: 3 * PART + 7]}


@simulated
async def test_a_file_with_holes_arrives_after_a_kill(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = bytearray(100 * PART)
    async with world.mounted(upload_delay_s=5) as mount:
        fd = await mount.create("holes")
        await mount.ftruncate(fd, len(content))
        for at in (0, 41 * PART + 7, 99 * PART):
            content[at : at + PART] = b"x" * PART
            await mount.pwrite(fd, b"x" * PART, at)
        await mount.close(fd)
        mount.kill()
    async with world.mounted(upload_delay_s=5) as mount:
        assert mount.spool.used_bytes < 30 * PART
        assert await mount.read("holes") == content
        await mount.change("holes", b"yy", 50 * PART)
        content[50 * PART : 50 * PART + 2] = b"yy"
        mount.kill()
    async with world.mounted() as mount:
        await mount.sync()
        assert world.files() == {"holes": bytes(content)}
