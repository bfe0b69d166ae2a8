"""What S3 has already is copied inside S3: how often bytes are sent, and that only what is equal counts as equal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.errors import (
    AccessDeniedError,
    NetworkError,
    NoSuchKeyError,
    PreconditionFailedError,
)
from s3mount.refs import ContentRef
from s3mount.s3.checksums import BLOCK_BYTES
from s3mount.spool.journal.changes import blob_id_of
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script

PART = 2 * BLOCK_BYTES
SIZES = [20_000, BLOCK_BYTES, 6 * PART + 777]


class Sent:
    """How many bytes of bodies were sent since it was made."""

    def __init__(self, world: World) -> None:
        self.total = 0
        world.on_request = self._note

    def _note(self, text: str) -> None:
        found = re.search(r"^(put|upload_part) .*body=(\d+) bytes(?!.*: done)", text)
        self.total += int(found[2]) if found else 0


@pytest.mark.parametrize("size", SIZES)
def test_the_same_bytes_again_are_not_sent_again(tmp_path: Path, size: int) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        content = os.urandom(size)
        async with world.mounted(part_bytes=PART) as mount:
            await mount.write("a", content)
            await mount.sync()
            await trio.sleep(3)
            first = await world.metadata("a")
            sent = Sent(world)
            with world.counting() as asked:
                await mount.write("a", content)
                await mount.sync()
            assert (sent.total, asked["copy"]) == (0, 1)
            assert (await world.metadata("a"))["mtime"] > first.get("mtime", "")
            counters = mount.fs.uploader.counters
            assert (counters["deduplicated"], counters["saved_bytes"]) == (1, size)
            assert world.files() == {"a": content}
            assert await mount.read("a") == content
            assert mount.leftovers() == []

    run()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cold", [False, True])
def test_a_copy_inside_the_mount_is_a_copy_inside_s3(tmp_path: Path, size: int, cold: bool) -> None:
    """``cp`` of what was uploaded through this mount, or of what others wrote and nobody has read yet."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        content = os.urandom(size)
        if cold:
            await world.foreign_put("a", content)
        async with world.mounted(part_bytes=PART) as mount:
            if not cold:
                await mount.write("a", content)
            await mount.mkdir("d")
            await mount.sync()
            sent = Sent(world)
            with world.counting() as asked:
                source = await mount.open("a", os.O_RDONLY)
                target = await mount.create("d/b")
                for at in range(0, size, 100_000):
                    data = await mount.pread(source, 100_000, at)
                    await mount.pwrite(target, data, at)
                    await trio.sleep(0.01)
                await mount.close(source)
                await mount.close(target)
                await mount.sync()
            assert (sent.total, asked["create_multipart"]) == (0, 0)
            assert asked["copy"] >= 1
            assert mount.fs.uploader.counters["saved_bytes"] == size
            assert world.files() == {"a": content, "d/b": content}
            assert await mount.read("d/b") == content

    run()


@simulated
async def test_what_deviates_late_is_sent_whole_and_right(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = os.urandom(8 * PART)
    other = bytearray(content)
    other[5 * PART + 100] ^= 1
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.sync()
        with world.counting() as asked:
            fd = await mount.create("b")
            for at in range(0, len(other), BLOCK_BYTES):
                await mount.pwrite(fd, bytes(other[at : at + BLOCK_BYTES]), at)
                await trio.sleep(0.05)
                if at == 4 * PART:
                    assert world.requests["create_multipart"] == 1, "that of the first file"
            await trio.sleep(1)
            assert world.requests["create_multipart"] == 2, "before close()"
            await mount.close(fd)
            await mount.sync()
        assert (asked["upload_part"], asked["copy"]) == (8, 0)
        assert world.files() == {"a": content, "b": bytes(other)}


@simulated
async def test_equal_checksums_alone_prove_nothing(tmp_path: Path) -> None:
    """An index that lies (a collision, a damaged file) must not change what S3 gets."""
    world = World(tmp_path)
    content, other = os.urandom(50_000), os.urandom(50_000)
    async with world.mounted() as mount:
        etag = await world.foreign_put("a", other)
        fd = await mount.create("b")
        await mount.pwrite(fd, content, 0)
        blob = mount.spool.live_blobs[blob_id_of(mount.spool.changes["b"])]
        index = mount.fs.known._index
        assert index is not None
        sums = blob.sums.of_whole(50_000)
        assert sums is not None
        index.add(ContentRef("a", etag, 50_000), sums)
        await mount.close(fd)
        await mount.sync()
        assert world.files() == {"a": other, "b": content}
        assert mount.fs.uploader.counters["deduplicated"] == 0


@pytest.mark.parametrize("error", [AccessDeniedError, NoSuchKeyError, PreconditionFailedError])
def test_a_copy_that_s3_refuses_is_sent_instead(
    tmp_path: Path, error: type[NoSuchKeyError]
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        world.faults = script = Script()
        content = os.urandom(50_000)
        async with world.mounted(part_bytes=PART) as mount:
            await mount.write("a", content)
            await mount.sync()
            script.fail("copy", lambda: error("no", status=403))
            await mount.write("b", content)
            await mount.sync()
            assert world.files() == {"a": content, "b": content}

    run()


@simulated
async def test_a_source_that_somebody_replaced_is_no_source(tmp_path: Path) -> None:
    world = World(tmp_path)
    content, other = os.urandom(50_000), os.urandom(50_000)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.sync()
        await world.foreign_put("a", other)
        await mount.write("b", content)
        await mount.sync()
        assert world.files() == {"a": other, "b": content}


@simulated
async def test_a_store_that_heeds_no_condition_on_the_source_is_looked_at_again(
    tmp_path: Path,
) -> None:
    """Between the look at the source and its copy somebody replaces it: what was copied is not believed."""
    world = World(tmp_path)
    content, other = os.urandom(50_000), os.urandom(50_000)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.sync()
        copy = mount.store.copy

        async def heedless(source: ContentRef, *args: object, **kwargs: object) -> object:
            etag = await world.foreign_put("a", other)
            return await copy(ContentRef("a", etag, 50_000), *args, **kwargs)  # type: ignore[arg-type]

        mount.store.copy = heedless  # type: ignore[method-assign,assignment]
        seen = msgspec.structs.replace(mount.fs.capabilities.seen, copy_source_condition=None)
        mount.fs.capabilities.learn(seen)
        await mount.write("b", content)
        await mount.sync()
        assert world.files() == {"a": other, "b": content}


@simulated
async def test_a_store_that_looks_at_the_source_before_it_reads_it_is_not_believed(
    tmp_path: Path,
) -> None:
    """As LocalStack does: what replaces the source in between is copied, though a condition forbade it."""
    world = World(tmp_path, copy_gap_s=1.0)
    content, other = os.urandom(50_000), os.urandom(9_000)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.sync()
        await mount.write("b", content)
        await trio.sleep(0.5)
        await world.foreign_put("a", other)
        await mount.sync()
        assert world.files() == {"a": other, "b": content}
        assert await mount.read("b") == content


@pytest.mark.parametrize("size", [9_000, 50_000])
def test_a_copy_whose_answer_was_lost_is_ours_only_with_our_bytes(
    tmp_path: Path, size: int
) -> None:
    """Its source was replaced before it was read: it has our attributes, and theirs for bytes."""

    @simulated
    async def run() -> None:
        world = World(tmp_path, copy_gap_s=1.0)
        world.faults = script = Script()
        content, other = os.urandom(50_000), os.urandom(size)
        async with world.mounted(part_bytes=PART) as mount:
            await mount.write("a", content)
            await mount.sync()
            script.fail("copy", lambda: NetworkError("lost"), key="b", times=1, is_done=True)
            await mount.write("b", content)
            await trio.sleep(0.5)
            await world.foreign_put("a", other)
            await mount.sync()
            assert world.files() == {"a": other, "b": content}
            assert await mount.read("b") == content

    run()


@simulated
async def test_a_moved_file_is_not_what_replaced_its_source_at_that_moment(tmp_path: Path) -> None:
    """Its bytes are gone from the old key, but not from the cache: theirs is kept, and so is ours."""
    world = World(tmp_path, copy_gap_s=1.0)
    content, other = os.urandom(50_000), os.urandom(9_000)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.sync()
        await mount.rename("a", "b")
        await trio.sleep(0.5)
        await world.foreign_put("a", other)
        await mount.sync()
        assert world.files() == {"a": other, "b": content}
        assert await mount.read("b") == content


@simulated
async def test_a_file_of_others_that_is_rewritten_with_its_own_bytes_is_not_sent(
    tmp_path: Path,
) -> None:
    """Nothing is known of it but its ETag and size."""
    world = World(tmp_path)
    content = os.urandom(PART)
    await world.foreign_put("a", content)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.sync()
        sent = Sent(world)
        with world.counting() as asked:
            await mount.write("a", content)
            await mount.sync()
        assert sent.total == 0
        assert asked["get"] + asked["fetch"] == 0
        await mount.write("new", content[::-1])
        await mount.rename("new", "a")
        await mount.sync()
        assert sent.total == len(content)
        assert world.files() == {"a": content[::-1]}


@simulated
async def test_a_temporary_name_that_replaces_the_same_bytes_is_not_sent(tmp_path: Path) -> None:
    """rsync and editors write a new file and rename it over the old one."""
    world = World(tmp_path)
    content = os.urandom(PART)
    await world.foreign_put("a", content)
    async with world.mounted(part_bytes=PART, upload_delay_s=1) as mount:
        await mount.sync()
        sent = Sent(world)
        await mount.write(".a.tmp", content)
        assert await mount.exists("a")
        await mount.rename(".a.tmp", "a")
        await mount.sync()
        assert sent.total == 0
        assert world.files() == {"a": content}


@simulated
async def test_without_dedupe_all_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = os.urandom(50_000)
    async with world.mounted(part_bytes=PART, dedupe=False) as mount:
        await mount.write("a", content)
        await mount.sync()
        sent = Sent(world)
        await mount.write("a", content)
        await mount.write("b", content)
        await mount.sync()
        assert sent.total == 2 * len(content)


@simulated
async def test_what_was_uploaded_is_known_to_the_next_mount(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = os.urandom(6 * PART)
    async with world.mounted(part_bytes=PART) as mount:
        await mount.write("a", content)
        await mount.rename("a", "moved")
        await mount.sync()
        await mount.rename("moved", "again")
        await mount.sync()
    async with world.mounted(part_bytes=PART) as mount:
        sent = Sent(world)
        await mount.write("b", content)
        await mount.sync()
        assert sent.total == 0
        assert world.files() == {"again": content, "b": content}
