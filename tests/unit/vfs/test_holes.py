"""Holes of large files: their zeros go up once and are copied in S3, and the right bytes arrive whatever happens."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec
from unittest import mock

import pytest
import trio

from s3mount import crashpoints
from s3mount.errors import AccessDeniedError, NoSuchKeyError, RejectedError, StoreError
from s3mount.refs import ContentRef
from s3mount.testing.memory_store import MemoryStore
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated, small_blocks
from tests.unit.vfs.scripted import Script

PART = PART_BYTES
PARTS = 40
"""So many that the hole is found on the disk after a restart, too."""
MIDDLE = 20 * PART + 100
SPARSE = bytes(MIDDLE) + b"data" + bytes(PARTS * PART - MIDDLE - 4)

P = ParamSpec("P")


def with_small_blocks(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Simulated, with checksums of blocks that are smaller than a part."""
    run = simulated(test)

    @functools.wraps(test)
    def small(*args: P.args, **kwargs: P.kwargs) -> None:
        with small_blocks():
            run(*args, **kwargs)

    return small


async def write_sparse(mount: Mount, name: str = "sparse") -> None:
    """As ``truncate -s`` and one write."""
    fd = await mount.create(name)
    await mount.ftruncate(fd, PARTS * PART)
    await mount.pwrite(fd, b"data", MIDDLE)
    await mount.close(fd)


async def keys_ever(world: World) -> set[str]:
    """All keys that have a version or a delete marker in the bucket."""
    page = await world.s3.list_versions_page("")
    return {version.key for version in page.versions} - {".s3mount/"}


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("versioning", ["off", "enabled"])
def test_the_zeros_of_a_hole_go_up_once(tmp_path: Path, versioning: str, opaque: bool) -> None:
    """Also where no ETag tells of the bytes, as with SSE-KMS."""

    @with_small_blocks
    async def run() -> None:
        world = World(tmp_path, versioning=versioning, opaque_etags=opaque)
        async with world.mounted() as mount:
            await mount.write("first", b"")
            await mount.sync()
            with world.counting() as asked:
                await write_sparse(mount)
                assert mount.fs.pending()[1] == 4
                await mount.sync()
            assert world.files() == {"first": b"", "sparse": SPARSE}
            assert await keys_ever(world) == {"first", "sparse"}, "nothing temporary is left"
            assert mount.leftovers() == []
        assert (asked["put"], asked["delete"]) == (2, 1), "the zeros, and the top's marker"
        assert (asked["upload_part"], asked["upload_part_copy"]) == (1, PARTS - 1)

    run()


@with_small_blocks
async def test_a_hole_of_few_parts_is_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        fd = await mount.create("f")
        await mount.pwrite(fd, b"a" * PART, 0)
        await mount.ftruncate(fd, 3 * PART)
        await mount.close(fd)
        await mount.sync()
        assert world.files() == {"f": b"a" * PART + bytes(2 * PART)}
        assert world.requests["upload_part_copy"] == 0


@with_small_blocks
async def test_zeros_that_were_written_are_no_hole(tmp_path: Path) -> None:
    """A program that wrote them may have wanted them on the disk, and they count against the spool."""
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("f", bytes(6 * PART))
        assert mount.fs.pending()[1] == 6 * PART
        await mount.sync()
        assert world.files() == {"f": bytes(6 * PART)}
        assert world.requests["upload_part_copy"] == 0


@with_small_blocks
async def test_files_that_are_sent_together_share_one_object_of_zeros(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = Script(latency_s=0.1)
    async with world.mounted() as mount:
        await mount.sync()
        before = world.requests["put"]
        for number in range(3):
            fd = await mount.create(f"f{number}")
            await mount.ftruncate(fd, (10 + number) * PART + number)
            await mount.close(fd)
        await mount.sync()
        wanted = {f"f{number}": bytes((10 + number) * PART + number) for number in range(3)}
        assert world.files() == wanted
        assert world.requests["put"] - before <= 2, "and the top's marker"
        assert mount.leftovers() == []


@with_small_blocks
async def test_a_stored_object_made_much_longer_keeps_its_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("big", b"b" * (3 * PART + 7))
    async with world.mounted() as mount:
        await mount.truncate("big", PARTS * PART)
        await mount.sync()
        assert world.files() == {"big": b"b" * (3 * PART + 7) + bytes((PARTS - 3) * PART - 7)}
        assert world.requests["upload_part"] == 1
        assert await keys_ever(world) == {"big"}


def refused() -> AccessDeniedError:
    return AccessDeniedError("injected", status=403)


def unknown() -> RejectedError:
    return RejectedError("injected", status=501)


def gone() -> NoSuchKeyError:
    return NoSuchKeyError("injected", status=404, code="NoSuchKey")


@pytest.mark.parametrize("error", [refused, unknown, gone])
def test_where_zeros_are_not_copied_they_are_sent(
    tmp_path: Path, error: Callable[[], StoreError], caplog: pytest.LogCaptureFixture
) -> None:
    @with_small_blocks
    async def run() -> None:
        world = World(tmp_path)
        world.faults = script = Script()
        script.fail("upload_part_copy", error)
        with caplog.at_level(logging.WARNING):
            async with world.mounted() as mount:
                await write_sparse(mount)
                await mount.sync()
                assert world.files() == {"sparse": SPARSE}
                assert world.requests["upload_part"] == PARTS
                assert await keys_ever(world) == {"sparse"}
        assert ("holes of files are sent" in caplog.text) == (error is not gone)

    run()


@with_small_blocks
async def test_zeros_that_may_not_be_put_are_sent_and_not_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    put = MemoryStore.put
    tried: list[str] = []

    async def refuse(self: MemoryStore, key: str, *args: object, **more: object) -> object:
        if "probe-" in key:
            tried.append(key)
            raise refused()
        return await put(self, key, *args, **more)  # type: ignore[arg-type]

    with mock.patch.object(MemoryStore, "put", refuse):
        async with world.mounted(dedupe=False) as mount:
            for name in ("one", "two"):
                await write_sparse(mount, name)
                await mount.sync()
    assert world.files() == {"one": SPARSE, "two": SPARSE}
    assert world.requests["upload_part"] == 2 * PARTS
    assert len(tried) == 1


@with_small_blocks
async def test_a_store_that_copies_something_else_is_found_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    source = MemoryStore._source

    async def other(self: MemoryStore, content: ContentRef) -> bytes:
        return b"x" * len(await source(self, content))

    with mock.patch.object(MemoryStore, "_source", other):
        async with world.mounted() as mount:
            await write_sparse(mount)
            await mount.sync()
    assert world.files() == {"sparse": SPARSE}
    assert world.requests["upload_part"] == PARTS


@with_small_blocks
async def test_what_is_written_while_zeros_are_copied_arrives(tmp_path: Path) -> None:
    """Into the hole whose zeros are put, and into one that is just being copied."""
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted(uploads_max=2) as mount:
        await mount.write("first", b"")
        await mount.sync()
        gate = script.hold("upload_part_copy", "sparse")
        await write_sparse(mount)
        await script.waiting.wait()
        fd = await mount.open("sparse", os.O_RDWR)
        for part in (0, 1, 30):
            await mount.pwrite(fd, b"late", part * PART + 7)
        gate.set()
        await mount.close(fd)
        await mount.sync()
        wanted = bytearray(SPARSE)
        for part in (0, 1, 30):
            wanted[part * PART + 7 : part * PART + 11] = b"late"
        assert world.files()["sparse"] == wanted


@with_small_blocks
async def test_a_hole_that_is_written_while_its_zeros_are_put_is_no_source(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        await mount.write("first", b"")
        await mount.sync()
        put = MemoryStore.put

        async def write_first(self: MemoryStore, key: str, *args: object, **more: object) -> object:
            if "probe-" in key:
                await mount.pwrite(fd, b"x" * len(SPARSE), 0)
            return await put(self, key, *args, **more)  # type: ignore[arg-type]

        fd = await mount.create("sparse")
        await mount.ftruncate(fd, PARTS * PART)
        await mount.fsync(fd)
        with mock.patch.object(MemoryStore, "put", write_first):
            mount.fs.uploader.send_now(mount.spool.changes["sparse"])
            await trio.sleep(5)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["sparse"] == b"x" * (PARTS * PART)
        await trio.sleep(200)
        assert mount.leftovers() == []
        assert not [key for key in world.contents() if "probe-" in key]


@pytest.mark.parametrize("versioning", ["off", "enabled"])
@pytest.mark.parametrize("step", ["upload: noted", "zeros: put", "part: copied", "zeros: removed"])
def test_after_a_kill_the_rest_is_copied_and_nothing_temporary_stays(
    tmp_path: Path, step: str, versioning: str
) -> None:
    @with_small_blocks
    async def run() -> None:
        world = World(tmp_path, versioning=versioning)
        hit: list[str] = []
        async with world.mounted() as mount:
            await mount.sync()
            await write_sparse(mount)

            def kill(name: str) -> None:
                if name == step:
                    hit.append(name)
                    mount.kill()

            with crashpoints.listening(kill):
                await trio.sleep(60)
        assert hit
        async with world.mounted() as mount:
            await mount.sync()
            await trio.sleep(1)
            assert world.files() == {"sparse": SPARSE}
            assert await keys_ever(world) == {"sparse"}
            assert world.requests["upload_part"] <= 2
            assert mount.leftovers() == []

    run()


@with_small_blocks
async def test_zeros_whose_removal_fails_are_removed_later(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    script.fail("delete", lambda: AccessDeniedError("injected", status=403), times=1)
    async with world.mounted() as mount:
        await write_sparse(mount)
        await mount.sync()
        assert world.files().keys() > {"sparse"}
        await trio.sleep(61)
        assert world.files() == {"sparse": SPARSE}
        assert mount.leftovers() == []
