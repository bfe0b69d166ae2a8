"""Only S3's answers count: what answers in its place is an interruption, whatever was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from s3mount.errors import (
    ChecksumError,
    NoSuchKeyError,
    NotS3Error,
    StoreError,
    ThrottledError,
)
from s3mount.refs import ByteRange, ContentRef, FileSlice, ObjectHeaders
from s3mount.s3.client import S3Store
from tests.servers.lies import LIES, SPOILT
from tests.unit.s3.fault_server import (
    Behaviour,
    FaultServer,
    behave,
    changed,
    faulty_store,
    lying,
    md5,
    without,
)

PLAIN = ObjectHeaders()
OLD, NEW = b"what is there", b"what is written"
SOURCE = ContentRef("key", md5(OLD), len(OLD))
SINK_BYTES = 5


class Request(NamedTuple):
    """A request: how it is made, and what must have become of it once S3 answers."""

    send: Callable[[S3Store, Path], Awaitable[object]]
    expected: object
    left: dict[str, bytes]


async def fetch(store: S3Store, sink: Path) -> object:
    sink.write_bytes(bytes(SINK_BYTES))
    await store.fetch(
        "key",
        ByteRange(3, SINK_BYTES),
        FileSlice(str(sink), 0, SINK_BYTES),
        if_match=md5(OLD),
    )
    return sink.read_bytes()


async def upload(store: S3Store, sink: Path) -> object:
    upload_id = await store.create_multipart("new", PLAIN)
    part = await store.upload_part("new", upload_id, 1, NEW)
    assert (await store.list_parts("new", upload_id))[0].etag == part.etag
    return (await store.complete_multipart("new", upload_id, [part])).etag


async def head(store: S3Store, sink: Path) -> object:
    return (await store.head("key")).etag


async def head_missing(store: S3Store, sink: Path) -> object:
    with pytest.raises(NoSuchKeyError):
        await store.head("new")
    return None


async def get(store: S3Store, sink: Path) -> object:
    return (await store.get("key"))[1]


async def put(store: S3Store, sink: Path) -> object:
    return (await store.put("new", NEW, PLAIN)).etag


async def copy(store: S3Store, sink: Path) -> object:
    return (await store.copy(SOURCE, "new", None)).etag


async def copy_part(store: S3Store, sink: Path) -> object:
    return (await store.upload_part_copy("new", "id", 1, SOURCE, ByteRange(0, len(OLD)))).etag


async def delete(store: S3Store, sink: Path) -> object:
    await store.delete("key")
    return None


async def delete_many(store: S3Store, sink: Path) -> object:
    return await store.delete_many(["key", "nothing"])


async def list_page(store: S3Store, sink: Path) -> object:
    return [info.key for info in (await store.list_page("")).objects]


async def list_versions(store: S3Store, sink: Path) -> object:
    return [version.key for version in (await store.list_versions_page("")).versions]


async def list_uploads(store: S3Store, sink: Path) -> object:
    return await store.list_uploads("")


async def abort(store: S3Store, sink: Path) -> object:
    await store.abort_multipart("new", "id")
    return None


async def describe(store: S3Store, sink: Path) -> object:
    headers = (await store.describe("key")).headers
    return headers.tags if headers is not None else None


async def fetch_whole(store: S3Store, sink: Path) -> object:
    sink.write_bytes(bytes(len(OLD)))
    whole = FileSlice(str(sink), 0, len(OLD))
    await store.fetch("key", ByteRange(0, len(OLD)), whole, if_match=md5(OLD))
    return sink.read_bytes()


async def check_bucket(store: S3Store, sink: Path) -> object:
    return (await store.check_bucket()).name


BEFORE = {"key": OLD}
REQUESTS = {
    "get": Request(get, OLD, BEFORE),
    "fetch": Request(fetch, OLD[3 : 3 + SINK_BYTES], BEFORE),
    "head": Request(head, md5(OLD), BEFORE),
    "head of nothing": Request(head_missing, None, BEFORE),
    "put": Request(put, md5(NEW), {**BEFORE, "new": NEW}),
    "copy": Request(copy, md5(OLD), {**BEFORE, "new": OLD}),
    "copy of a part": Request(copy_part, md5(OLD), BEFORE),
    "upload": Request(upload, f"{md5(bytes.fromhex(md5(NEW)))}-1", {**BEFORE, "new": NEW}),
    "delete": Request(delete, None, {}),
    "delete many": Request(delete_many, [None, None], {}),
    "list": Request(list_page, ["key"], BEFORE),
    "list versions": Request(list_versions, ["key"], BEFORE),
    "list uploads": Request(list_uploads, [], BEFORE),
    "abort": Request(abort, None, BEFORE),
    "check bucket": Request(check_bucket, "bucket", BEFORE),
}


def run(body: Callable[[FaultServer, S3Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with faulty_store(tries_max=1) as (server, store):
            await body(server, store)

    trio.run(main)


async def known(server: FaultServer, store: S3Store) -> None:
    """Let the store be known as one that marks all its answers."""
    for _ in range(3):
        await store.put("key", OLD, PLAIN)
        await store.head("key")
        await store.list_page("")
        await store.delete("key")
        await store.delete_many(["key"])
    server.objects = dict(BEFORE)


@pytest.mark.parametrize("name", REQUESTS)
def test_no_false_answer_is_believed(name: str, tmp_path: Path) -> None:
    """Every status with every body, before and after the store did what was asked; then the liar is gone."""
    request = REQUESTS[name]

    async def body(server: FaultServer, store: S3Store) -> None:
        await known(server, store)
        believed = []
        for title, lie in LIES.items():
            server.objects = dict(BEFORE)
            server.usually = lying(lie)
            try:
                await request.send(store, tmp_path / "sink")
            except StoreError as error:
                is_interrupted = isinstance(error, NotS3Error | ThrottledError)
                if not is_interrupted or error.status != lie.status:
                    believed.append(f"{title}: {error.describe()}")
            else:
                believed.append(title)
            assert server.objects == BEFORE
            server.usually = behave
            assert await request.send(store, tmp_path / "sink") == request.expected
            assert server.objects == request.left
        assert believed == []

    run(body)


MISSING = [
    *((name, "x-amz-request-id") for name in REQUESTS if name != "head of nothing"),
    *((name, "etag") for name in ("get", "fetch", "head", "put")),
    ("head", "content-length"),
]


@pytest.mark.parametrize(("name", "missing"), MISSING)
def test_an_answer_without_a_header_that_s3_sends_is_none(
    name: str, missing: str, tmp_path: Path
) -> None:
    request = REQUESTS[name]

    async def body(server: FaultServer, store: S3Store) -> None:
        await known(server, store)
        server.usually = without(missing)
        with pytest.raises(NotS3Error) as raised:
            await request.send(store, tmp_path / "sink")
        assert "not an answer of S3 (" in str(raised.value)
        server.objects = dict(BEFORE)
        server.usually = behave
        assert await request.send(store, tmp_path / "sink") == request.expected

    run(body)


TAGS = {"project": "s3mount"}
DOCUMENTS = {
    **{
        name: REQUESTS[name]
        for name in (
            *("copy", "copy of a part", "upload", "delete many"),
            *("list", "list versions", "list uploads", "check bucket"),
        )
    },
    "describe": Request(describe, "project=s3mount", BEFORE),
}


def spoiling(how: str, only: str = "") -> Behaviour:
    """Each answer's body is spoilt, or that of the documents with ``only`` in them."""

    def change(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        return head, SPOILT[how](body) if only.encode() in body else body

    return changed(change)


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_the_right_length_that_is_none_is_not_believed(
    name: str, how: str, tmp_path: Path
) -> None:
    """Under a head that has all that S3 sends; the request goes well when the liar is gone."""
    request = DOCUMENTS[name]

    async def body(server: FaultServer, store: S3Store) -> None:
        server.tags = dict(TAGS)
        await known(server, store)
        await describe(store, tmp_path)
        server.usually = spoiling(how)
        with pytest.raises(NotS3Error):
            await request.send(store, tmp_path / "sink")
        server.objects = dict(BEFORE)
        server.usually = behave
        assert await request.send(store, tmp_path / "sink") == request.expected

    run(body)


@pytest.mark.parametrize("root", ["ListPartsResult", "CompleteMultipartUploadResult"])
@pytest.mark.parametrize("how", SPOILT)
def test_the_later_documents_of_an_upload_are_not_believed_either(
    root: str, how: str, tmp_path: Path
) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        await known(server, store)
        server.usually = spoiling(how, root)
        with pytest.raises(NotS3Error):
            await upload(store, tmp_path)

    run(body)


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    ("send", "tells_checksums"), [(get, False), (get, True), (fetch_whole, True)]
)
def test_content_of_the_right_length_is_held_against_what_the_store_says_of_it(
    send: Callable[[S3Store, Path], Awaitable[object]],
    tells_checksums: bool,
    how: str,
    tmp_path: Path,
) -> None:
    """Its checksum, or an ETag that is the MD5."""

    async def body(server: FaultServer, store: S3Store) -> None:
        server.tells_checksums = tells_checksums
        await known(server, store)
        assert await send(store, tmp_path / "sink") == OLD
        server.usually = spoiling(how)
        with pytest.raises(ChecksumError):
            await send(store, tmp_path / "sink")
        server.usually = behave
        assert await send(store, tmp_path / "sink") == OLD

    run(body)


def test_an_etag_that_the_parts_do_not_have_is_looked_at(tmp_path: Path) -> None:
    """The answer to CompleteMultipartUpload names another; what the key has is what counts."""

    def change(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        lie = b"0" * 32 + b"-1&quot;</ETag></CompleteMultipartUploadResult>"
        is_it = b"<CompleteMultipartUploadResult" in body
        return head, body[: -len(lie)] + lie if is_it else body

    async def body(server: FaultServer, store: S3Store) -> None:
        await known(server, store)
        await get(store, tmp_path)
        server.usually = changed(change)
        with pytest.raises(NotS3Error, match="another ETag"):
            await upload(store, tmp_path)

    run(body)
