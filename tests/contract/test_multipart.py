from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from s3mount.errors import NoSuchKeyError, PreconditionFailedError, RangeError, RejectedError
from s3mount.refs import (
    ByteRange,
    Capabilities,
    Condition,
    ContentRef,
    FileSlice,
    ObjectHeaders,
    PartInfo,
)
from s3mount.s3.checksums import multipart_etag
from s3mount.s3.headers import same_when_stored
from s3mount.s3.store import Store
from tests.contract.subjects import Subject

MIB = 1 << 20
PLAIN = ObjectHeaders()
HEADERS = ObjectHeaders(metadata={"mode": "33188"}, content_type="text/plain")


def noise(size: int, seed: bytes = b"") -> bytes:
    return hashlib.shake_256(seed).digest(size)


async def content(store: Store, key: str, folder: Path) -> bytes:
    size = (await store.head(key)).size
    sink = folder / "sink"
    sink.write_bytes(bytes(size))
    await store.fetch(key, ByteRange(0, size), FileSlice(str(sink), 0, size))
    return sink.read_bytes()


def test_parts_become_one_object(subject: Subject, tmp_path: Path) -> None:
    data = noise(11 * MIB)
    source = tmp_path / "source"
    source.write_bytes(data)

    async def body(store: Store) -> None:
        upload_id = await store.create_multipart("key", HEADERS)
        last = await store.upload_part("key", upload_id, 3, data[10 * MIB :])
        first = await store.upload_part("key", upload_id, 1, b"to be replaced")
        first = await store.upload_part("key", upload_id, 1, FileSlice(str(source), 0, 5 * MIB))
        second = await store.upload_part(
            "key", upload_id, 2, FileSlice(str(source), 5 * MIB, 5 * MIB)
        )
        assert (first.number, first.size) == (1, 5 * MIB)
        assert first.etag == hashlib.md5(data[: 5 * MIB], usedforsecurity=False).hexdigest()
        with pytest.raises(NoSuchKeyError):
            await store.head("key")
        assert [found.key for found in (await store.list_page("")).objects] == []
        parts = await store.list_parts("key", upload_id)
        assert parts == [first, second, last]
        result = await store.complete_multipart("key", upload_id, parts)
        assert result.etag == multipart_etag(parts)
        info = await store.head("key")
        assert (info.size, info.etag) == (len(data), result.etag)
        assert info.headers is not None
        assert same_when_stored(info.headers, HEADERS)
        assert not info.etag_is_md5
        assert await content(store, "key", tmp_path) == data
        assert await store.list_uploads("") == []

    subject.run(body)


def test_a_version_made_of_parts_has_an_id(subject: Subject) -> None:
    async def body(store: Store) -> None:
        await store.put("key", b"old", PLAIN)
        upload_id = await store.create_multipart("key", PLAIN)
        part = await store.upload_part("key", upload_id, 1, b"new")
        result = await store.complete_multipart("key", upload_id, [part])
        assert result.version_id
        assert (await store.head("key")).version_id == result.version_id
        assert (await store.get("key", version_id=result.version_id))[1] == b"new"

    subject.run(body, versioned=True)


def test_an_aborted_upload_is_gone(subject: Subject) -> None:
    async def body(store: Store) -> None:
        upload_id = await store.create_multipart("key", PLAIN)
        part = await store.upload_part("key", upload_id, 1, b"x")
        await store.abort_multipart("key", upload_id)
        await store.abort_multipart("key", upload_id)
        with pytest.raises(NoSuchKeyError):
            await store.list_parts("key", upload_id)
        with pytest.raises(NoSuchKeyError):
            await store.upload_part("key", upload_id, 2, b"y")
        with pytest.raises(NoSuchKeyError):
            await store.complete_multipart("key", upload_id, [part])
        with pytest.raises(NoSuchKeyError):
            await store.head("key")

    subject.run(body)


def test_uploads_are_listed_by_prefix(subject: Subject) -> None:
    async def body(store: Store) -> None:
        made = {}
        for key in ("a/1", "a/2", "b/ü +%20"):
            made[key] = await store.create_multipart(key, PLAIN)
        listed = await store.list_uploads("")
        assert {upload.key: upload.upload_id for upload in listed} == made
        assert [upload.key for upload in await store.list_uploads("b/")] == ["b/ü +%20"]
        assert await store.list_uploads("c") == []
        assert all(upload.initiated_ns > 1_600_000_000 * 10**9 for upload in listed)

    subject.run(body)


def test_an_upload_is_refused_when_the_key_changed_meanwhile(subject: Subject) -> None:
    async def body(store: Store) -> None:
        there = await store.put("key", b"theirs", PLAIN)
        upload_id = await store.create_multipart("key", PLAIN)
        part = await store.upload_part("key", upload_id, 1, b"ours")
        for condition in (Condition(if_absent=True), Condition(if_match=part.etag)):
            with pytest.raises(PreconditionFailedError):
                await store.complete_multipart("key", upload_id, [part], condition=condition)
            assert (await store.get("key"))[1] == b"theirs"
        await store.complete_multipart(
            "key", upload_id, [part], condition=Condition(if_match=there.etag)
        )
        assert (await store.get("key"))[1] == b"ours"

    subject.run(body)


def test_wrong_parts_are_refused(subject: Subject) -> None:
    async def body(store: Store) -> None:
        upload_id = await store.create_multipart("key", PLAIN)
        first = await store.upload_part("key", upload_id, 1, b"too small")
        second = await store.upload_part("key", upload_id, 2, b"tail")
        wrong = PartInfo(1, second.etag, first.size)
        with pytest.raises(RejectedError):
            await store.complete_multipart("key", upload_id, [first, second])
        with pytest.raises(RejectedError):
            await store.complete_multipart("key", upload_id, [wrong])
        with pytest.raises(RejectedError):
            await store.upload_part("key", upload_id, 0, b"")
        with pytest.raises(RejectedError):
            await store.upload_part("key", upload_id, 10_001, b"")
        with pytest.raises(NoSuchKeyError):
            await store.head("key")

    subject.run(body)


def test_parts_may_be_copied_from_another_object(subject: Subject, tmp_path: Path) -> None:
    data = noise(12 * MIB, b"old")
    path = tmp_path / "old"
    path.write_bytes(data)

    async def body(store: Store) -> None:
        old = await store.put("old", FileSlice(str(path), 0, len(data)), PLAIN)
        source = ContentRef("old", old.etag, len(data))
        upload_id = await store.create_multipart("new", HEADERS, has_copies=True)
        first = await store.upload_part_copy("new", upload_id, 1, source, ByteRange(0, 6 * MIB))
        second = await store.upload_part("new", upload_id, 2, b"changed")
        assert first.size == 6 * MIB
        with pytest.raises(RangeError):
            await store.upload_part_copy("new", upload_id, 3, source, ByteRange(12 * MIB - 1, 2))
        await store.complete_multipart("new", upload_id, [first, second])
        assert await content(store, "new", tmp_path) == data[: 6 * MIB] + b"changed"

    subject.run(body)


def test_parts_are_copied_from_exactly_that_version(subject: Subject) -> None:
    async def body(store: Store) -> None:
        old = await store.put("old", b"0123456789", PLAIN)
        await store.put("old", b"9876543210", PLAIN)
        upload_id = await store.create_multipart("new", PLAIN)
        source = ContentRef("old", old.etag, 10)
        with pytest.raises(PreconditionFailedError):
            await store.upload_part_copy("new", upload_id, 1, source, ByteRange(0, 5))
        with pytest.raises(NoSuchKeyError):
            await store.upload_part_copy(
                "new", upload_id, 1, ContentRef("gone", old.etag, 10), ByteRange(0, 5)
            )

    subject.run(body)


def test_an_upload_may_have_one_empty_part(subject: Subject) -> None:
    async def body(store: Store) -> None:
        upload_id = await store.create_multipart("key", HEADERS)
        part = await store.upload_part("key", upload_id, 1, b"")
        await store.complete_multipart("key", upload_id, [part])
        info, data = await store.get("key")
        assert data == b""
        assert info.headers is not None
        assert same_when_stored(info.headers, HEADERS)

    subject.run(body)


def test_a_condition_on_completing_does_not_mislead_later_puts(subject: Subject) -> None:
    """A store that ignores it there need not understand the same spelling of it on a PUT."""
    found: list[Capabilities] = []

    async def ask(store: Store) -> None:
        found.append(await store.probe(".probe"))

    async def write(store: Store) -> None:
        await store.probe(".probe", known=found[0])
        first = await store.put("key", b"first", PLAIN)
        before = await store.put("large", b"before", PLAIN)
        upload_id = await store.create_multipart("large", PLAIN)
        part = await store.upload_part("large", upload_id, 1, noise(1000))
        condition = Condition(if_match=before.etag)
        await store.complete_multipart("large", upload_id, [part], condition=condition)
        now = Condition(if_match=first.etag)
        await store.put("key", b"second", PLAIN, condition=now)
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"third", PLAIN, condition=now)
        assert (await store.get("key"))[1] == b"second"

    subject.run(ask)
    subject.run(write)
