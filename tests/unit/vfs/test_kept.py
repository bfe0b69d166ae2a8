"""What others stored with an object outlives what is done to it here."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.refs import ObjectHeaders
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, Killed, World, simulated

NOTES = {
    "UTF-8": "Grüße à Äé".encode().decode("latin-1"),
    "latin-1": "Gr\xfc\xdfe \xa0",
    "encoded word": "=?UTF-8?B?R3LDvMOfZQ==?=",
    "long": "x" * (2048 - len("note") - 10),
}


@pytest.mark.parametrize("kind", NOTES)
@pytest.mark.parametrize("act", ["chmod", "write", "append", "append to a large one", "rename"])
@simulated
async def test_metadata_in_any_bytes_and_up_to_the_limit(
    tmp_path: Path, act: str, kind: str
) -> None:
    world = World(tmp_path)
    size = 3 * PART_BYTES if "large" in act else 10
    note = NOTES[kind]
    await world.s3.put("f", b"x" * size, ObjectHeaders(metadata={"note": note}))
    async with world.mounted() as mount:
        if act == "chmod":
            await mount.chmod("f", 0o600)
        elif act == "write":
            await mount.write("f", b"other")
        elif act == "rename":
            await mount.rename("f", "g")
        else:
            await mount.change("f", b"more", size)
        await mount.sync()
        key = "g" if act == "rename" else "f"
        assert (await world.metadata(key))["note"] == note


FOREIGN = ObjectHeaders(
    metadata={"author": "ann"}, content_type="text/plain", cache_control="no-cache"
)


def kept_of(headers: ObjectHeaders | None) -> tuple[object, ...]:
    """What another program stored of FOREIGN, as it is now."""
    assert headers is not None
    return headers.metadata.get("author"), headers.content_type, headers.cache_control


ACTS = {
    "create below": lambda mount: mount.write("k/x", b"new"),
    "remove below": lambda mount: mount.unlink("k/there"),
    "chmod": lambda mount: mount.chmod("k", 0o700),
    "touch": lambda mount: mount.utime("k", 10**18),
    "rename": lambda mount: mount.rename("k", "l"),
    "rename below": lambda mount: mount.rename("k/there", "k/then"),
    "mkdir below": lambda mount: mount.mkdir("k/d"),
}


@pytest.mark.parametrize("content", [b"", b"content"], ids=["empty", "filled"])
@pytest.mark.parametrize("is_pending", [False, True])
@pytest.mark.parametrize("act", ACTS)
@simulated
async def test_a_folders_object_keeps_its_content_and_metadata(
    tmp_path: Path, act: str, is_pending: bool, content: bytes
) -> None:
    world = World(tmp_path)
    await world.s3.put("k/", content, FOREIGN)
    await world.foreign_put("k/there", b"1")
    async with world.mounted() as mount:
        if is_pending:
            await mount.chmod("k", 0o711)
        await ACTS[act](mount)
        await mount.sync()
        key = "l/" if act == "rename" else "k/"
        assert world.contents()[key] == content
        assert kept_of((await world.s3.head(key)).headers) == kept_of(FOREIGN)
        if act == "rename":
            assert "k/" not in world.contents()
        assert not mount.pending()


@pytest.mark.parametrize("versioning", ["off", "enabled"])
@simulated
async def test_a_folder_whose_object_has_content_is_not_removed(
    tmp_path: Path, versioning: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, versioning=versioning)
    await world.s3.put("k/", b"content", FOREIGN)
    async with world.mounted() as mount:
        await mount.mkdir("empty")
        with pytest.raises(OSError, match="content") as refused:
            await mount.rmdir("k")
        assert refused.value.errno == errno.ENOTEMPTY
        with pytest.raises(OSError, match="content"):
            await mount.rename("empty", "k")
        await mount.sync()
        assert world.contents()["k/"] == b"content"
        assert "another program" in caplog.text
        caplog.clear()


@simulated
async def test_content_that_comes_while_a_folder_is_removed_or_made_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=5.0) as mount:
        await mount.mkdir("old")
        await mount.sync()
        await mount.rmdir("old")
        await mount.mkdir("new")
        await world.s3.put("old/", b"content", FOREIGN)
        await world.s3.put("new/", b"content", FOREIGN)
        await mount.sync()
        assert world.contents()["old/"] == world.contents()["new/"] == b"content"
        assert kept_of((await world.s3.head("new/")).headers) == kept_of(FOREIGN)
        await trio.sleep(2.0)
        assert await mount.exists("old")


@simulated
async def test_chmod_of_a_folder_as_the_first_act_keeps_what_is_stored(tmp_path: Path) -> None:
    world = World(tmp_path)
    stored = {
        "author": "ann",
        "mode": str(0o040700),
        "uid": "42",
        "gid": "43",
        "mtime": "1600000000",
    }
    await world.s3.put("k/", b"", ObjectHeaders(metadata=stored, content_type="text/plain"))
    async with world.mounted() as mount:
        await mount.chmod("k", 0o711)
        await mount.sync()
        metadata = await world.metadata("k/")
        assert (metadata["author"], metadata["uid"], metadata["gid"]) == ("ann", "42", "43")
        assert metadata["mode"] == str(0o040711)
        assert metadata["mtime"].startswith("1600000000")


BESIDE = ObjectHeaders(
    metadata={"author": "ann"},
    content_type="text/plain",
    content_encoding="identity",
    content_language="de",
    content_disposition="inline",
    cache_control="no-cache",
    expires="Thu, 01 Jan 2099 00:00:00 GMT",
    storage_class="STANDARD_IA",
    website_redirect="/elsewhere",
    encryption="aws:kms",
    kms_key_id="arn:aws:kms:eu-central-1:1:key/2",
    bucket_key="true",
    lock_mode="GOVERNANCE",
    lock_until="2099-01-01T00:00:00.000Z",
    legal_hold="ON",
    tags="a=1&b=c%20d",
    acl={"x-amz-acl": "public-read"},
)
COLD = StoreConfig(bucket="memory", new_objects=ObjectHeaders(storage_class="GLACIER_IR"))
CHANGES: dict[str, Callable[[Mount], Awaitable[None]]] = {
    "write": lambda mount: mount.write("f", b"other"),
    "write in parts": lambda mount: mount.write("f", b"y" * 5 * PART_BYTES),
    "append": lambda mount: mount.change("f", b"more", 3 * PART_BYTES),
    "chmod": lambda mount: mount.chmod("f", 0o600),
    "rename": lambda mount: mount.rename("f", "g"),
    "rename and write": lambda mount: rename_and_write(mount),
}


async def rename_and_write(mount: Mount) -> None:
    await mount.rename("f", "g")
    await mount.change("g", b"more", 0)


@pytest.mark.parametrize("loses_tags", [False, True])
@pytest.mark.parametrize("is_new_since", [False, True])
@pytest.mark.parametrize("act", CHANGES)
@simulated
async def test_what_lies_beside_the_metadata_is_kept(
    tmp_path: Path, act: str, is_new_since: bool, loses_tags: bool
) -> None:
    """Also what was changed after the mount had looked: tags and grants get no new date."""
    world = World(tmp_path, loses_tags=loses_tags)
    early = msgspec.structs.replace(BESIDE, tags="early=1") if is_new_since else BESIDE
    await world.s3.put("f", b"x" * 3 * PART_BYTES, early)
    async with world.mounted(store=COLD) as mount:
        assert len(await mount.read("f")) == 3 * PART_BYTES
        await world.s3.put_tags("f", BESIDE.tags or "")
        await CHANGES[act](mount)
        await mount.sync()
        there = (await world.s3.describe("g" if "rename" in act else "f")).headers
        assert there is not None
        assert msgspec.structs.replace(there, metadata={}) == msgspec.structs.replace(
            BESIDE, metadata={}
        )
        assert there.metadata["author"] == "ann"
        assert not mount.pending()


@simulated
async def test_a_new_file_gets_nothing_of_what_it_is_copied_from_or_replaces(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    data = bytes(range(256)) * 100
    await world.s3.put("f", data, BESIDE)
    async with world.mounted(store=COLD) as mount:
        await mount.write("copy", await mount.read("f"))
        await mount.write("draft", b"new")
        await mount.rename("draft", "f")
        await mount.sync()
        for key in ("copy", "f"):
            there = (await world.s3.describe(key)).headers
            assert there is not None
            assert (there.tags, there.encryption, there.lock_mode) == (None,) * 3
            assert there.acl == {}
            assert there.storage_class == "GLACIER_IR"


@simulated
async def test_tags_survive_a_kill_between_the_copy_that_lost_them_and_their_return(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, loses_tags=True)
    await world.s3.put("f", b"x", ObjectHeaders(tags="a=1"))
    mounts: list[Mount] = []

    def kill(text: str) -> None:
        if text.startswith("copy") and text.endswith("done"):
            mounts[0].kill()

    with contextlib.suppress(Killed):
        async with world.mounted() as mount:
            mounts.append(mount)
            world.on_request = kill
            await mount.chmod("f", 0o600)
            await mount.sync()
    world.on_request = lambda text: None
    there = (await world.s3.describe("f")).headers
    assert there is not None
    assert there.tags is None
    async with world.mounted() as mount:
        await mount.sync()
    there = (await world.s3.describe("f")).headers
    assert there is not None
    assert there.tags == "a=1"
    assert there.metadata["mode"] == str(0o100600)
