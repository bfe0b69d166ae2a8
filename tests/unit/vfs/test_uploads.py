"""What reaches S3, by which requests and how many, when files are written, changed and taken away."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import trio

from s3mount.errors import (
    AccessDeniedError,
    NetworkError,
    S3MountError,
    ServerFaultError,
    ThrottledError,
)
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put
from s3mount.spool.upload.multipart import MultipartSender
from s3mount.spool.upload.uploader import REFUSALS_MAX
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


def a_fault() -> ServerFaultError:
    return ServerFaultError("injected", status=500)


@simulated
async def test_a_new_file_is_one_put_after_the_delay(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=0.25) as mount:
        # The top's own marker comes first: now attributes are stored below it.
        await mount.write("first", b"")
        await mount.sync()
        with world.counting() as asked:
            await mount.write("a.txt", b"hello", mode=0o640)
            await trio.sleep(0.2)
            assert "a.txt" not in world.files()
            await trio.sleep(0.2)
            assert world.files()["a.txt"] == b"hello"
        assert asked["put"] == 1
        assert asked["head"] == asked["copy"] == 0
        metadata = await world.metadata("a.txt")
        assert metadata["mode"] == str(0o100640)
        assert (metadata["uid"], metadata["gid"]) == ("7", "7")
        assert metadata["mtime"] == metadata["ctime"]
        assert (await world.s3.head("a.txt")).headers.content_type == "text/plain"  # type: ignore[union-attr]


@simulated
async def test_a_file_deleted_before_its_upload_costs_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.sync()
        with world.counting() as asked:
            await mount.write("d/a", b"x" * 100)
            await mount.write("d/big", b"x" * 3 * PART)
            await mount.unlink("d/a")
            await mount.unlink("d/big")
            await mount.sync()
        assert asked["delete"] == 0
        assert asked["put"] <= 1, "the folder's times"
        assert world.files() == {}
        assert mount.leftovers() == []


@simulated
async def test_ten_rewrites_are_one_upload(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("a", b"0")
        await mount.sync()
        with world.counting() as asked:
            for number in range(10):
                await mount.write("a", b"%d" % number)
            await mount.sync()
        assert asked["put"] == 1
        assert world.files() == {"a": b"9"}


@simulated
async def test_a_large_file_leaves_in_parts_while_it_is_written(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        for number in range(10):
            await mount.pwrite(fd, bytes([number]) * PART, number * PART)
            await trio.sleep(0.1)
        sent = world.requests["upload_part"]
        assert sent >= 7, "parts leave before close"
        await mount.close(fd)
        await mount.sync()
        assert world.requests["upload_part"] == 10
        assert world.requests["create_multipart"] == 1
        assert world.files()["film.mkv"] == b"".join(bytes([n]) * PART for n in range(10))
        assert mount.leftovers() == []


@simulated
async def test_what_is_written_before_the_store_is_known_leaves_in_parts_too(
    tmp_path: Path,
) -> None:
    """The mount answers while it still asks what the store honours: nothing is sent till then."""
    world = World(tmp_path, faults=Script(latency_s=0.2))
    async with world.mounted() as mount:
        fd = await mount.create("film.mkv")
        await mount.pwrite(fd, b"x" * 10 * PART, 0)
        assert world.requests["upload_part"] < 3
        await trio.sleep(10)
        assert world.requests["upload_part"] == 8, "all but the two behind the writer"
        await mount.close(fd)
        await mount.sync()
        assert world.files()["film.mkv"] == b"x" * 10 * PART


@simulated
async def test_a_part_that_was_sent_and_then_rewritten_is_sent_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        for number in range(8):
            await mount.pwrite(fd, b"a" * PART, number * PART)
        await trio.sleep(1)
        await mount.pwrite(fd, b"HEADER", 10)
        await mount.close(fd)
        await mount.sync()
        expected = bytearray(b"a" * 8 * PART)
        expected[10:16] = b"HEADER"
        assert world.files()["film.mkv"] == expected
        assert world.requests["upload_part"] == 9


@simulated
async def test_a_write_far_behind_the_end_lengthens_the_part_that_was_the_last(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        world.faults = script = Script()
        script.fail("complete_multipart", a_fault, times=1)
        await mount.write("a", b"a" * (2 * PART + 100))
        await trio.sleep(0.3)
        fd = await mount.open("a", os.O_RDWR)
        await mount.pwrite(fd, b"z", 4 * PART)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["a"] == b"a" * (2 * PART + 100) + bytes(2 * PART - 100) + b"z"


@simulated
async def test_a_file_of_exactly_one_part_is_one_put(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("one", b"x" * PART)
        await mount.write("two", b"x" * 2 * PART)
        await mount.sync()
        assert world.files() == {"one": b"x" * PART, "two": b"x" * 2 * PART}
        assert world.requests["upload_part"] == 2


@simulated
async def test_a_small_change_of_a_large_object_sends_one_part_and_fetches_no_other(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    content = b"".join(bytes([n]) * PART for n in range(8))
    await world.foreign_put("big", content)
    async with world.mounted() as mount:
        await mount.sync()
        with world.counting() as asked:
            await mount.change("big", b"XX", 3 * PART + 5)
            await mount.sync()
        assert asked["upload_part"] == 1
        assert asked["upload_part_copy"] == 7
        assert asked["get"] + asked["fetch"] <= 1
        expected = bytearray(content)
        expected[3 * PART + 5 : 3 * PART + 7] = b"XX"
        assert world.files()["big"] == expected
        assert await mount.read("big") == expected


@simulated
async def test_an_append_to_a_stored_object_sends_the_end_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("log", b"l" * 4 * PART)
    async with world.mounted() as mount:
        await mount.sync()
        with world.counting() as asked:
            await mount.change("log", b"more", 4 * PART)
            await mount.sync()
        assert (asked["upload_part_copy"], asked["upload_part"]) == (4, 1)
        assert asked["get"] + asked["fetch"] == 0
        assert world.files()["log"] == b"l" * 4 * PART + b"more"


@pytest.mark.parametrize("size", [0, 10, PART, 3 * PART, 3 * PART + 1, 9 * PART])
def test_a_stored_object_is_truncated_and_extended(tmp_path: Path, size: int) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        content = b"".join(bytes([n + 1]) * PART for n in range(5))
        await world.foreign_put("big", content)
        async with world.mounted() as mount:
            await mount.truncate("big", size)
            assert (await mount.stat("big")).st_size == size
            expected = (content + bytes(9 * PART))[:size]
            assert await mount.read("big") == expected
            await mount.sync()
            assert world.files()["big"] == expected
            assert mount.leftovers() == []

    run()


@simulated
async def test_bytes_cut_off_do_not_come_back_from_below(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("big", b"b" * 3 * PART)
    async with world.mounted() as mount:
        fd = await mount.open("big", os.O_RDWR)
        await mount.ftruncate(fd, 100)
        await mount.ftruncate(fd, 2 * PART)
        await mount.pwrite(fd, b"end", 2 * PART)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["big"] == b"b" * 100 + bytes(2 * PART - 100) + b"end"


@simulated
async def test_chmod_while_the_content_is_sent_sends_no_byte_twice(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    gate = script.hold("put", "a")
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 3000)
        await script.waiting.wait()
        await mount.chmod("a", 0o600)
        await mount.utime("a", 1_500_000_000_123_456_789)
        gate.set()
        with world.counting() as asked:
            await mount.sync()
        assert asked["put"] <= 1, "the top's marker at most"
        assert asked["copy"] == 1
        metadata = await world.metadata("a")
        assert metadata["mode"] == str(0o100600)
        assert metadata["mtime"] == "1500000000.123456789"


@simulated
async def test_chmod_of_a_streamed_file_is_one_copy_inside_s3(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        for number in range(6):
            await mount.pwrite(fd, b"x" * PART, number * PART)
        await trio.sleep(0.5)
        await mount.chmod("film.mkv", 0o600)
        await mount.close(fd)
        await mount.sync()
        assert world.requests["upload_part"] == 6
        assert world.requests["copy"] == 1
        assert (await world.metadata("film.mkv"))["mode"] == str(0o100600)
        assert world.files()["film.mkv"] == b"x" * 6 * PART


@simulated
async def test_a_write_while_the_file_is_sent_makes_no_mixture(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.sync()
        script.latency_s = 1.0
        await mount.write("a", b"1" * 3000)
        await trio.sleep(0.6)
        assert mount.pending()["a"] == "put sending"
        await mount.chmod("a", 0o600)
        await mount.change("a", b"2" * 1500, 1500)
        seen = set()
        for _ in range(40):
            await trio.sleep(0.1)
            seen.add(world.files().get("a"))
        await mount.sync()
        assert seen - {None} == {b"1" * 3000, b"1" * 1500 + b"2" * 1500}
        assert mount.leftovers() == []


@pytest.mark.parametrize("error", [ThrottledError, ServerFaultError, NetworkError])
def test_what_may_pass_is_tried_again_ever_later(tmp_path: Path, error: type[NetworkError]) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.faults = script = Script()
        rule = script.fail("put", lambda: error("injected", status=503), key="a", times=6)
        async with world.mounted() as mount:
            started = trio.current_time()
            await mount.write("a", b"x")
            await mount.sync()
            assert rule.times == 0
            assert world.files() == {"a": b"x"}
            assert 10 < trio.current_time() - started < 130
            assert mount.fs.uploader.counters["postponed"] == 6
            assert mount.fs.uploader.counters["parked"] == 0

    run()


@simulated
async def test_a_refused_file_is_parked_readable_named_and_sent_when_it_may(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    refusal = script.fail("put", lambda: AccessDeniedError("no", status=403), key="a")
    async with world.mounted() as mount:
        await mount.write("a", b"mine")
        await mount.write("b", b"other")
        with pytest.raises(S3MountError, match="'a'"):
            await mount.sync()
        assert world.files() == {"b": b"other"}
        assert await mount.read("a") == b"mine"
        assert (await mount.fs.status_of("a"))["state"] == "parked"
        assert "no" in str((await mount.fs.status_of("a"))["error"])
        refusal.times = 0
        await mount.sync()
        assert world.files() == {"a": b"mine", "b": b"other"}
        assert mount.leftovers() == []


@simulated
async def test_a_parked_file_is_tried_again_by_itself(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lambda: AccessDeniedError("no", status=403), key="a", times=REFUSALS_MAX)
    async with world.mounted() as mount:
        await mount.write("a", b"mine")
        await trio.sleep(10)
        assert mount.pending()["a"] == "put parked"
        await trio.sleep(300)
        assert world.files() == {"a": b"mine"}


@simulated
async def test_a_full_spool_makes_writers_wait_for_uploads(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted(spool_bytes_max=8 * 1024) as mount:
        script.latency_s = 0.5
        for number in range(10):
            await mount.write(f"f{number}", b"x" * 3000)
            assert mount.spool.used_bytes <= 8 * 1024
        await mount.sync()
        assert len(world.files()) == 10
        assert mount.spool.used_bytes == 0


@simulated
async def test_a_spool_full_of_what_cannot_be_sent_gives_enospc_and_loses_nothing(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    refusal = script.fail("put", lambda: AccessDeniedError("no", status=403))
    async with world.mounted(spool_bytes_max=5000) as mount:
        await mount.write("a", b"a" * 4000)
        fd = await mount.create("b")
        with pytest.raises(OSError, match="spool is full") as caught:
            await mount.pwrite(fd, b"b" * 4000, 0)
        assert caught.value.errno == 28
        await mount.close(fd)
        refusal.times = 0
        await mount.sync()
        assert world.files() == {"a": b"a" * 4000, "b": b""}


@simulated
async def test_an_internal_error_parks_one_file_and_sends_the_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        original = mount.store.put

        async def broken(key: str, *args: object, **kwargs: object) -> object:
            if key == "bad":
                raise KeyError("oops")
            return await original(key, *args, **kwargs)  # type: ignore[arg-type]

        mount.store.put = broken  # type: ignore[method-assign,assignment]
        await mount.write("bad", b"1")
        await mount.write("good", b"2")
        with pytest.raises(S3MountError, match="'bad'"):
            await mount.sync()
        assert world.files() == {"good": b"2"}


@simulated
async def test_an_upload_that_somebody_aborted_begins_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        await mount.pwrite(fd, b"x" * 6 * PART, 0)
        await trio.sleep(1)
        for upload in await world.s3.list_uploads(""):
            await world.s3.abort_multipart(upload.key, upload.upload_id)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["film.mkv"] == b"x" * 6 * PART
        assert await world.s3.list_uploads("") == []


@simulated
async def test_wait_for_some_paths_does_not_wait_for_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("put", lambda: AccessDeniedError("no", status=403), key="d/bad")
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.mkdir("e")
        await mount.write("d/bad", b"1")
        await mount.write("e/good", b"2")
        await mount.fs.wait_uploaded(["e"])
        assert "e/good" in world.files()
        with pytest.raises(S3MountError, match="d/bad"):
            await mount.fs.wait_uploaded(["d"])


@simulated
async def test_a_write_after_a_chmod_while_the_file_is_sent_is_not_lost(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    gate = script.hold("put", "a")
    async with world.mounted() as mount:
        await mount.write("a", b"1" * 3000)
        fd = await mount.open("a", os.O_RDWR)
        await script.waiting.wait()
        await mount.chmod("a", 0o600)
        await mount.pwrite(fd, b"2" * 10, 2995)
        await mount.close(fd)
        gate.set()
        await mount.sync()
        assert world.files() == {"a": b"1" * 2995 + b"2" * 10}
        assert (await world.metadata("a"))["mode"] == str(0o100600)
        assert mount.leftovers() == []


@simulated
async def test_a_file_that_is_cut_while_its_parts_leave(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = Script(latency_s=0.2)
    async with world.mounted(uploads_max=1) as mount:
        await trio.sleep(1)
        fd = await mount.create("film.mkv")
        await mount.pwrite(fd, b"x" * 9 * PART, 0)
        await trio.sleep(0.5)
        await mount.ftruncate(fd, 10)
        await trio.sleep(2)
        await mount.close(fd)
        with trio.fail_after(1000):
            await mount.sync()
        assert world.files() == {"film.mkv": b"x" * 10}
        await trio.sleep(1)
        assert mount.leftovers() == []


@simulated
async def test_there_and_back_while_parts_leave_keeps_the_new_mode(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.write("a", b"x" * 4 * PART)
        rule = script.fail("complete_multipart", a_fault)
        await trio.sleep(0.5)
        await mount.chmod("a", 0o640)
        await mount.rename("a", "b")
        await mount.rename("b", "a")
        rule.times = 0
        await mount.sync()
        assert world.files() == {"a": b"x" * 4 * PART}
        assert (await world.metadata("a"))["mode"] == str(0o100640)
        await trio.sleep(1)
        assert mount.leftovers() == []


@simulated
async def test_who_has_a_file_open_reads_it_on_after_a_chmod_gave_it_another_etag(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.foreign_put("big", b"b" * 3 * PART)
    async with world.mounted() as mount:
        fd = await mount.open("big", os.O_RDONLY)
        await mount.change("big", b"end", 3 * PART)
        await mount.sync()
        before = (await world.s3.head("big")).etag
        await mount.chmod("big", 0o600)
        await mount.sync()
        assert (await world.s3.head("big")).etag != before
        assert await mount.pread(fd, PART, PART) == b"b" * PART
        assert await mount.pread(fd, 4 * PART, 2 * PART) == b"b" * PART + b"end"


@simulated
async def test_a_copy_of_a_streamed_file_is_known_as_ours_when_its_answer_was_lost(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        for number in range(4):
            await mount.pwrite(fd, b"x" * PART, number * PART)
            await trio.sleep(0.5)
        await mount.close(fd)
        await mount.sync()
        script.fail("copy", lambda: NetworkError("the answer was lost"), times=1, is_done=True)
        await mount.rename("film.mkv", "b")
        await trio.sleep(0.4)
        assert world.requests["copy"] == 1
        await mount.change("b", b"changed", 0)
        await mount.sync()
        assert world.files() == {"b": b"changed" + b"x" * (4 * PART - 7)}


@simulated
async def test_a_pause_ends_between_two_parts_and_goes_on_with_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        uploader = mount.fs.uploader
        await mount.write("first", b"")
        await mount.sync()
        uploader.pause(True)
        data, asked = os.urandom(5 * PART), world.requests
        before = asked.copy()
        await mount.write("large", data)
        await mount.write("small", b"s")
        await trio.sleep(60)
        assert not {"upload_part", "put"} & (asked - before).keys()
        with pytest.raises(S3MountError, match="uploads are paused: s3mount resume"):
            await mount.sync()
        on_request = world.on_request
        world.on_request = lambda told: uploader.pause(told.startswith("upload_part"))
        uploader.pause(False)
        await trio.sleep(60)
        assert asked["upload_part"] >= 1
        assert asked["upload_part"] <= 4, "as many as go at once"
        assert "large" not in world.files()
        world.on_request = on_request
        uploader.pause(False)
        await mount.sync()
        assert asked["upload_part"] == 5
        assert world.files()["large"] == data


@simulated
async def test_what_was_sent_together_leaves_the_journal_together(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script(latency_s=0.01))
    async with world.mounted(upload_delay_s=0.2) as mount:
        await mount.write("first", b"")
        await mount.sync()
        for number in range(20):
            await mount.write(f"a{number}", b"x" * 100)
        before = mount.spool.journal.commits
        await trio.sleep(5)
        assert len(world.files()) == 21
        assert mount.spool.changes == {}
        assert mount.spool.journal.commits - before <= 8
        assert mount.leftovers() == []


@simulated
async def test_the_time_of_a_write_is_journalled_with_its_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=500, kernel_keeps_mtime=True) as mount:
        await mount.write("first", b"")
        await mount.sync()
        before = mount.spool.journal.commits
        fd = await mount.create("a")
        await mount.pwrite(fd, b"x" * 100, 0)
        await mount.fs.metadata.set(await mount.node("a"), mtime_ns=5)
        await mount.close(fd)
        assert mount.spool.journal.commits - before == 2, "it is made, and it is closed"
        mount.kill()
    async with world.mounted() as mount:
        assert (await mount.stat("a")).st_mtime_ns == 5


@simulated
async def test_a_file_that_moves_while_its_upload_begins_leaves_nothing_under_its_old_name(
    tmp_path: Path,
) -> None:
    """Who sends it under its old name does not go on with the upload that was begun for the new one meanwhile."""
    world = World(tmp_path)
    await world.foreign_put("a", b"old")
    world.faults = script = Script(latency_s=1.0)
    async with world.mounted() as mount:
        gate = script.hold("upload_part", "c")
        begin = MultipartSender.begin

        async def gate_reached() -> None:
            with trio.fail_after(30):
                await script.waiting.wait()
            gate.set()
            # All parts are there by then, and S3 is about to complete it.
            await trio.sleep(0.2)

        async def begin_late(
            self: MultipartSender, change: Put, blob: Blob, *, streamed: bool
        ) -> None:
            if change.key == "a":
                # As long as it waits for the stream that begins it.
                await mount.rename("a", "c")
                await gate_reached()
            await begin(self, change, blob, streamed=streamed)

        with mock.patch.object(MultipartSender, "begin", begin_late):
            await mount.write("a", b"x" * 2 * PART)
            await mount.sync()
        assert world.files() == {"c": b"x" * 2 * PART}
        assert world.requests["complete_multipart"] == 1
