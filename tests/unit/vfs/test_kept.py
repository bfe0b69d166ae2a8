"""What others stored with an object outlives what is done to it here."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from s3mount.refs import ObjectHeaders
from tests.sim.world import PART_BYTES, World, simulated

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


@pytest.mark.parametrize("content", [b"", b"content", b"x" * 5000])
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
