from __future__ import annotations

import hashlib
import time
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.errors import (
    DamagedBodyError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    StoreError,
)
from s3mount.refs import ByteRange, Condition, ContentRef, FileSlice, ObjectHeaders
from s3mount.s3.checksums import crc64nvme
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from tests.contract.subjects import Subject

PLAIN = ObjectHeaders()
FULL = ObjectHeaders(
    metadata={"mode": "33188", "mtime": "1700000000.123456789", "a-b": "x  y=z;"},
    content_type="text/plain; charset=utf-8",
    content_encoding="identity",
    content_language="de",
    content_disposition='attachment; filename="a b"',
    cache_control="max-age=60",
)
ODD_KEYS = [
    "a b",
    "a+b",
    "a%20b",
    "a%2Fb",
    "ä/ö/ü/日本語/😀",
    "quote'\"<&>",
    "?query=1&x#y",
    "back\\slash",
    "~.-_*!()",
    "a//b",
    "dir/",
    "tab\tend",
    "new\nline",
    "\x01\x7f",
    "a\rb\uffff",
    "é",
    "é",
    "x" * 1024,
]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    "note", ["Grüße à Ä".encode().decode("latin-1"), "Gr\xfc\xdfe", "\xe9\t\x85\xa0"]
)
def test_metadata_in_any_bytes_go_back_as_they_came(subject: Subject, note: str) -> None:
    async def body(store: Store) -> None:
        await store.put("key", b"x", ObjectHeaders(metadata={"note": note}))
        # Ceph tells bytes that are no UTF-8 as an encoded word (RFC 2047), as AWS does with all.
        told = (await store.head("key")).headers
        assert told is not None
        made = await store.put("key", b"y", told)
        assert (await store.head("key")).headers == told
        await store.copy(ContentRef("key", made.etag, 1), "copy", told)
        assert (await store.get("copy"))[0].headers == told
        upload_id = await store.create_multipart("parts", told)
        part = await store.upload_part("parts", upload_id, 1, b"z")
        await store.complete_multipart("parts", upload_id, [part])
        assert (await store.head("parts")).headers == told

    subject.run(body)


BESIDE = ObjectHeaders(
    metadata={"a": "1"},
    website_redirect="/elsewhere",
    tags="a=1&b=c%20d",
    acl={"x-amz-acl": "public-read"},
)


def test_what_lies_beside_the_metadata(subject: Subject) -> None:
    """Tags, grants and redirects: described, kept by a copy as it is, replaced by one with new headers."""
    subject.enable_acls()

    async def body(store: Store) -> None:
        made = await store.put("key", b"x", BESIDE)
        told = (await store.describe("key")).headers
        assert told is not None
        assert plain(told) == BESIDE
        source = ContentRef("key", made.etag, 1)
        await store.copy(source, "kept", None)
        assert (await store.describe("kept")).headers == told
        await store.copy(source, "other", PLAIN)
        bare = (await store.describe("other")).headers
        assert bare is not None
        assert plain(bare) == ObjectHeaders(acl={})
        await store.put_tags("other", "x=%C3%A9&y=")
        again = (await store.describe("other")).headers
        assert again is not None
        assert again.tags == "x=%C3%A9&y="

    subject.run(body)


def plain(headers: ObjectHeaders | None) -> ObjectHeaders:
    """Without the encryption that a store chose by itself."""
    assert headers is not None
    return msgspec.structs.replace(headers, encryption=None)


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000, INLINE_BODY_BYTES_MAX])
def test_what_was_put_is_what_head_and_get_tell(subject: Subject, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]

    async def body(store: Store) -> None:
        before = time.time()
        result = await store.put("folder/key", data, FULL)
        assert result.etag == md5(data)
        assert result.version_id is None
        assert abs(result.date_ns / 1e9 - before) < 60
        info = await store.head("folder/key")
        assert (info.key, info.size, info.etag) == ("folder/key", size, md5(data))
        assert info.etag_is_md5
        assert plain(info.headers) == FULL
        assert info.last_modified_ns % 1_000_000_000 == 0
        assert abs(info.last_modified_ns / 1e9 - before) < 60
        got, content = await store.get("folder/key")
        assert content == data
        assert msgspec.structs.replace(got, is_proven=False) == info

    subject.run(body)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_any_key_goes_everywhere(subject: Subject, key: str, tmp_path: Path) -> None:
    async def body(store: Store) -> None:
        made = await store.put(key, b"first", PLAIN)
        assert (await store.head(key)).etag == made.etag
        assert (await store.get(key))[1] == b"first"
        sink = tmp_path / "sink"
        sink.write_bytes(bytes(5))
        await store.fetch(key, ByteRange(0, 5), FileSlice(str(sink), 0, 5))
        assert sink.read_bytes() == b"first"
        page = await store.list_page("")
        assert [found.key for found in page.objects] == [key]
        await store.copy(ContentRef(key, made.etag, 5), "copy", PLAIN)
        assert (await store.get("copy"))[1] == b"first"
        await store.delete(key)
        await store.copy(ContentRef("copy", made.etag, 5), key, PLAIN)
        upload_id = await store.create_multipart(key, PLAIN)
        part = await store.upload_part(key, upload_id, 1, b"second")
        await store.complete_multipart(key, upload_id, [part])
        assert (await store.get(key))[1] == b"second"
        assert await store.delete_many([key, "copy"]) == [None, None]
        assert (await store.list_page("")).objects == ()

    subject.run(body)


@pytest.mark.parametrize("key", ["", "x" * 1025, "ü" * 513, "\udcff"])
def test_keys_that_s3_cannot_hold_are_refused(subject: Subject, key: str) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(RejectedError):
            await store.put(key, b"", PLAIN)
        with pytest.raises(RejectedError):
            await store.head(key)

    subject.run(body)


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "a\nb"},
        {"name": " a"},
        {"name": "a\x7f"},
        {"Name": "a"},
        {"na me": "a"},
        {"": "a"},
    ],
)
def test_metadata_that_would_not_come_back_unchanged_is_refused(
    subject: Subject, metadata: dict[str, str]
) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(RejectedError):
            await store.put("key", b"", ObjectHeaders(metadata=metadata))
        with pytest.raises(RejectedError):
            await store.create_multipart("key", ObjectHeaders(metadata=metadata))
        with pytest.raises(NoSuchKeyError):
            await store.head("key")

    subject.run(body)


def test_what_is_not_there_is_no_such_key(subject: Subject, tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(b"x")

    async def body(store: Store) -> None:
        with pytest.raises(NoSuchKeyError) as raised:
            await store.head("nothing")
        assert raised.value.key == "nothing"
        assert raised.value.status == 404
        with pytest.raises(NoSuchKeyError):
            await store.get("nothing")
        with pytest.raises(NoSuchKeyError):
            await store.fetch("nothing", ByteRange(0, 1), FileSlice(str(sink), 0, 1))

    subject.run(body)


def test_ranges_in_memory(subject: Subject) -> None:
    async def body(store: Store) -> None:
        made = await store.put("key", b"0123456789", FULL)
        info, content = await store.get("key", byte_range=ByteRange(2, 3))
        assert content == b"234"
        assert (info.size, info.etag, plain(info.headers)) == (10, made.etag, FULL)
        assert (await store.get("key", byte_range=ByteRange(8, 100)))[1] == b"89"
        assert (await store.get("key", byte_range=ByteRange(0, 10)))[1] == b"0123456789"
        with pytest.raises(RangeError):
            await store.get("key", byte_range=ByteRange(10, 1))
        await store.put("empty", b"", PLAIN)
        with pytest.raises(RangeError):
            await store.get("empty", byte_range=ByteRange(0, 1))

    subject.run(body)


def test_reading_a_pinned_object_fails_when_it_was_replaced(
    subject: Subject, tmp_path: Path
) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(3))

    async def body(store: Store) -> None:
        old = await store.put("key", b"old", PLAIN)
        assert (await store.get("key", if_match=old.etag))[1] == b"old"
        await store.put("key", b"new", PLAIN)
        with pytest.raises(PreconditionFailedError):
            await store.get("key", if_match=old.etag)
        with pytest.raises(PreconditionFailedError):
            await store.get("key", if_match=old.etag, byte_range=ByteRange(0, 1))
        with pytest.raises(PreconditionFailedError):
            await store.fetch("key", ByteRange(0, 3), FileSlice(str(sink), 0, 3), if_match=old.etag)
        assert sink.read_bytes() == bytes(3)

    subject.run(body)


def test_large_objects_go_through_files(subject: Subject, tmp_path: Path) -> None:
    size = 3 * INLINE_BODY_BYTES_MAX + 17
    data = hashlib.shake_256(b"large").digest(size)
    source, sink = tmp_path / "source", tmp_path / "sink"
    source.write_bytes(b"before" + data + b"behind")
    sink.write_bytes(b"x" * (size + 20))
    progress: list[int] = []

    async def body(store: Store) -> None:
        made = await store.put("key", FileSlice(str(source), 6, size), FULL)
        assert made.etag == md5(data)
        with pytest.raises(RejectedError):
            await store.get("key")
        info, piece = await store.get("key", byte_range=ByteRange(1000, 50))
        assert piece == data[1000:1050]
        assert info.size == size
        info = await store.fetch(
            "key",
            ByteRange(0, size),
            FileSlice(str(sink), 10, size),
            if_match=made.etag,
            on_progress=progress.append,
        )
        assert (info.size, info.etag, plain(info.headers)) == (size, made.etag, FULL)
        assert sink.read_bytes() == b"x" * 10 + data + b"x" * 10
        await store.fetch("key", ByteRange(size - 5, 5), FileSlice(str(sink), 0, 5))
        assert sink.read_bytes()[:10] == data[-5:] + b"x" * 5

    subject.run(body)
    assert progress == sorted(progress)
    assert progress[-1] == size


def test_fetching_what_cannot_be_had_or_kept(subject: Subject, tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(100))

    async def body(store: Store) -> None:
        await store.put("key", b"0123456789", PLAIN)
        with pytest.raises(RangeError):
            await store.fetch("key", ByteRange(5, 6), FileSlice(str(sink), 0, 6))
        with pytest.raises(RangeError):
            await store.fetch("key", ByteRange(10, 1), FileSlice(str(sink), 0, 1))
        with pytest.raises(RejectedError):
            await store.fetch("key", ByteRange(0, 2), FileSlice(str(sink), 0, 1))
        with pytest.raises(RejectedError):
            await store.fetch("key", ByteRange(0, 2), FileSlice(str(tmp_path / "no"), 0, 2))

    subject.run(body)


def test_files_that_end_too_early_are_not_sent(subject: Subject, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(600_000))

    async def body(store: Store) -> None:
        for slice_ in (
            FileSlice(str(source), 0, 600_001),
            FileSlice(str(source), 600_000, 10),
            FileSlice(str(tmp_path / "no"), 0, 1),
        ):
            with pytest.raises(RejectedError):
                await store.put("key", slice_, PLAIN)
        with pytest.raises(NoSuchKeyError):
            await store.head("key")
        await store.put("key", FileSlice(str(source), 0, 0), PLAIN)
        assert (await store.head("key")).size == 0

    subject.run(body)


def test_conditional_puts(subject: Subject) -> None:
    absent = Condition(if_absent=True)

    async def body(store: Store) -> None:
        first = await store.put("key", b"1", PLAIN, condition=absent)
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"2", PLAIN, condition=absent)
        wrong = Condition(if_match=md5(b"other"))
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"2", PLAIN, condition=wrong)
        assert (await store.get("key"))[1] == b"1"
        await store.put("key", b"3", PLAIN, condition=Condition(if_match=first.etag))
        assert (await store.get("key"))[1] == b"3"
        with pytest.raises(PreconditionFailedError):
            await store.put("gone", b"", PLAIN, condition=wrong)
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"4", PLAIN, condition=Condition(if_match=first.etag))

    subject.run(body)
    subject.run(body, versioned=True)


def test_of_many_that_create_a_key_one_wins(subject: Subject) -> None:
    won: list[bytes] = []
    lost = 0

    async def body(store: Store) -> None:
        await store.probe("probe")

        async def create(data: bytes) -> None:
            nonlocal lost
            try:
                await store.put("key", data, PLAIN, condition=Condition(if_absent=True))
            except StoreError:
                lost += 1
            else:
                won.append(data)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(create, b"%d" % number)
        assert (await store.get("key"))[1] == won[0]

    subject.run(body)
    assert (len(won), lost) == (1, 7)


def test_copies(subject: Subject) -> None:
    async def body(store: Store) -> None:
        made = await store.put("from", b"content", FULL)
        source = ContentRef("from", made.etag, 7)
        new = ObjectHeaders(metadata={"mode": "1"}, content_type="text/html")
        result = await store.copy(source, "to", new)
        info, content = await store.get("to")
        assert (content, plain(info.headers), info.etag) == (b"content", new, result.etag)
        await store.copy(source, "kept", None)
        assert plain((await store.head("kept")).headers) == FULL
        await store.copy(source, "from", new)
        info, content = await store.get("from")
        assert (content, plain(info.headers)) == (b"content", new)
        assert result.version_id is None

    subject.run(body)


def test_a_copy_takes_exactly_its_source(subject: Subject) -> None:
    async def body(store: Store) -> None:
        old = await store.put("from", b"old", PLAIN)
        await store.put("from", b"new", PLAIN)
        with pytest.raises(PreconditionFailedError):
            await store.copy(ContentRef("from", old.etag, 3), "to", PLAIN)
        with pytest.raises(NoSuchKeyError):
            await store.copy(ContentRef("gone", old.etag, 3), "to", PLAIN)
        with pytest.raises(NoSuchKeyError):
            await store.head("to")
        await store.probe("probe")  # what it learns must not loosen this
        with pytest.raises(PreconditionFailedError):
            await store.copy(ContentRef("from", old.etag, 3), "to", PLAIN)
        with pytest.raises(NoSuchKeyError):
            await store.head("to")

    subject.run(body)


def test_conditional_copies(subject: Subject) -> None:
    async def body(store: Store) -> None:
        made = await store.put("from", b"a", PLAIN)
        there = await store.put("to", b"b", PLAIN)
        source = ContentRef("from", made.etag, 1)
        for condition in (Condition(if_absent=True), Condition(if_match=made.etag)):
            with pytest.raises(PreconditionFailedError):
                await store.copy(source, "to", PLAIN, condition=condition)
        assert (await store.get("to"))[1] == b"b"
        await store.copy(source, "to", PLAIN, condition=Condition(if_match=there.etag))
        assert (await store.get("to"))[1] == b"a"
        await store.copy(source, "fresh", PLAIN, condition=Condition(if_absent=True))
        assert (await store.get("fresh"))[1] == b"a"

    subject.run(body)


def test_a_deletion_may_demand_what_is_there(subject: Subject) -> None:
    async def body(store: Store) -> None:
        first = await store.put("key", b"first", PLAIN)
        second = await store.put("key", b"second", PLAIN)
        with pytest.raises(PreconditionFailedError):
            await store.delete("key", if_match=first.etag)
        assert (await store.get("key"))[1] == b"second"
        await store.delete("key", if_match=second.etag)
        with pytest.raises(NoSuchKeyError):
            await store.head("key")
        await store.delete("key", if_match=second.etag)

    subject.run(body)


@pytest.mark.parametrize("first", ["copy", "complete"])
def test_what_ignores_a_condition_teaches_nothing_of_how_to_spell_it(
    subject: Subject, first: str
) -> None:
    """Ceph 16 takes any If-Match with a copy or a completion, and refuses a quoted one with a PUT."""

    async def test(store: Store) -> None:
        made = await store.put("from", b"new", PLAIN)
        old = await store.put("to", b"old", PLAIN)
        condition = Condition(if_match=old.etag)
        if first == "copy":
            there = await store.copy(
                ContentRef("from", made.etag, 3), "to", PLAIN, condition=condition
            )
        else:
            upload_id = await store.create_multipart("to", PLAIN)
            part = await store.upload_part("to", upload_id, 1, b"part")
            there = await store.complete_multipart("to", upload_id, [part], condition=condition)
        await store.put("to", b"newer", PLAIN, condition=Condition(if_match=there.etag))
        assert (await store.get("to"))[1] == b"newer"

    subject.run(test)


def test_deleting_may_be_repeated(subject: Subject) -> None:
    async def body(store: Store) -> None:
        await store.put("a", b"", PLAIN)
        await store.put("b", b"", PLAIN)
        await store.delete("a")
        await store.delete("a")
        assert await store.delete_many(["a", "b", "never"]) == [None, None, None]
        assert await store.delete_many([]) == []
        assert (await store.list_page("")).objects == ()
        answers = await store.delete_many(["", "fine"])
        assert isinstance(answers[0], RejectedError)
        assert answers[1] is None
        with pytest.raises(RejectedError):
            await store.delete_many(["k"] * 1001)

    subject.run(body)


def test_versions_are_destroyed_many_at_once(subject: Subject) -> None:
    async def body(store: Store) -> None:
        first = (await store.put("k", b"1", PLAIN)).version_id
        second = (await store.put("k", b"2", PLAIN)).version_id
        third = (await store.put("k", b"3", PLAIN)).version_id
        await store.put("other", b"", PLAIN)
        keys, versions = ["k", "k", "other", "never"], [first, third, None, None]
        assert await store.delete_many(keys, version_ids=versions) == [None] * 4
        page = await store.list_versions_page("")
        left = [(each.key, each.version_id, each.is_delete_marker) for each in page.versions]
        assert ("k", second, False) in left
        assert not {first, third} & {version_id for _, version_id, _ in left}
        assert [key for key, _, is_marker in left if is_marker and key == "other"] == ["other"]
        assert (await store.get("k"))[1] == b"2"
        # Gone already is gone.
        assert await store.delete_many(["k"], version_ids=[first]) == [None]

    subject.run(body, versioned=True)


def test_versions(subject: Subject, tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(3))

    async def body(store: Store) -> None:
        old = await store.put("key", b"old", FULL)
        new = await store.put("key", b"new", PLAIN)
        assert old.version_id
        assert new.version_id
        assert old.version_id != new.version_id
        assert (await store.get("key"))[0].version_id == new.version_id
        info, content = await store.get("key", version_id=old.version_id)
        assert (content, plain(info.headers), info.version_id) == (b"old", FULL, old.version_id)
        told = await store.head("key", version_id=old.version_id)
        assert told == msgspec.structs.replace(info, is_proven=False)
        await store.fetch(
            "key", ByteRange(0, 3), FileSlice(str(sink), 0, 3), version_id=old.version_id
        )
        assert sink.read_bytes() == b"old"
        pinned = ContentRef("key", old.etag, 3, old.version_id)
        copied = await store.copy(pinned, "copy", PLAIN)
        assert (await store.head("copy")).version_id == copied.version_id
        assert (await store.get("copy"))[1] == b"old"
        await store.delete("key")
        with pytest.raises(NoSuchKeyError):
            await store.head("key")
        assert [found.key for found in (await store.list_page("")).objects] == ["copy"]
        assert (await store.get("key", version_id=new.version_id))[1] == b"new"
        await store.delete("key", version_id=new.version_id)
        with pytest.raises(NoSuchKeyError):
            await store.get("key", version_id=new.version_id)
        await store.delete("key", version_id=new.version_id)

    subject.run(body, versioned=True)


def test_a_delete_marker_is_no_object(subject: Subject) -> None:
    if subject.server is None:
        pytest.skip("a store in memory tells nobody the ids of its delete markers")
    client = subject.server.boto3_client()
    bucket = subject.bucket(True)
    client.put_object(Bucket=bucket, Key="key", Body=b"x")
    marker = client.delete_object(Bucket=bucket, Key="key")["VersionId"]

    async def body(store: Store) -> None:
        with pytest.raises(NoSuchKeyError):
            await store.head("key", version_id=marker)
        with pytest.raises(NoSuchKeyError):
            await store.get("key", version_id=marker)

    subject.run(body, versioned=True)


def test_storage_class_and_defaults_read_back_alike(subject: Subject) -> None:
    async def body(store: Store) -> None:
        told = ObjectHeaders(content_type="binary/octet-stream", storage_class="STANDARD")
        await store.put("key", b"", told)
        info = await store.head("key")
        assert plain(info.headers) == PLAIN
        assert info.storage_class is None
        listed = (await store.list_page("")).objects[0]
        assert listed.storage_class is None
        assert listed.headers is None
        expected = msgspec.structs.replace(info, headers=None, etag_is_md5=None)
        assert msgspec.structs.replace(listed, last_modified_ns=0) == msgspec.structs.replace(
            expected, last_modified_ns=0
        )

    subject.run(body)


def test_a_body_that_is_not_as_expected_is_not_sent(subject: Subject, tmp_path: Path) -> None:
    """The checksum travels with the place of the bytes, whoever reads them."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 2_000_000)
    right = FileSlice(str(source), 100, 1_500_000, crc64nvme(b"x" * 1_500_000))

    async def body(store: Store) -> None:
        await store.put("key", right, PLAIN)
        upload_id = await store.create_multipart("key", PLAIN)
        await store.upload_part("key", upload_id, 1, right)
        with source.open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"y")
        with pytest.raises(DamagedBodyError):
            await store.put("key", right, PLAIN)
        with pytest.raises(DamagedBodyError):
            await store.upload_part("key", upload_id, 2, right)
        assert [part.number for part in await store.list_parts("key", upload_id)] == [1]
        await store.abort_multipart("key", upload_id)
        assert (await store.get("key", byte_range=ByteRange(999_900, 1)))[1] == b"x"

    subject.run(body)
