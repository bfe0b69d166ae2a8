"""A directory bucket's requests: sessions, what it lists, renames and appends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from s3mount.config import StoreConfig
from s3mount.errors import (
    AccessDeniedError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
)
from s3mount.refs import ByteRange, Condition, ContentRef, FileSlice, ObjectHeaders
from s3mount.s3 import boto_session
from s3mount.s3.boto_session import bind
from s3mount.s3.http import credentials
from s3mount.s3.store import Store
from s3mount.tree.listing import list_directory
from tests.servers.express import BUCKET, ExpressServer

PLAIN = ObjectHeaders(metadata={"mode": "33188"})
ABSENT = Condition(if_absent=True)
TRIAL = ".s3mount/probe-1-abc"


def test_requests_are_signed_by_one_session_and_copies_by_the_account(
    express: ExpressServer,
) -> None:
    async def body(store: Store) -> None:
        made = await store.put("a", b"content", PLAIN, condition=ABSENT)
        assert (await store.get("a"))[1] == b"content"
        await store.copy(ContentRef("a", made.etag, 7), "b", None)
        upload_id = await store.create_multipart("c", PLAIN, has_copies=True)
        part = await store.upload_part_copy(
            "c", upload_id, 1, ContentRef("a", made.etag, 7), ByteRange(0, 7)
        )
        await store.complete_multipart("c", upload_id, [part], condition=ABSENT)
        assert await store.delete_many(["a", "b"]) == [None, None]

    express.run(body)
    assert express.contents() == {"c": b"content"}
    assert {each.status for each in express.seen if each.status >= 400} <= {404}
    assert express.names().count("CreateSession") == 1
    sessions = {each.name: "x-amz-s3session-token" in each.headers for each in express.seen}
    assert [name for name, is_by_session in sessions.items() if not is_by_session] == [
        "CreateSession",
        "CopyObject",
    ]


def test_a_session_is_renewed_before_it_ends(
    express: ExpressServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "LOOK_EVERY_S", 0.0)

    async def body(store: Store) -> None:
        for number in range(3):
            await store.put(f"k{number}", b"", PLAIN)

    express.run(body)
    assert len(express.sessions) == 1
    # Less than what a request demands is left of each: every one begins another.
    express.session_s = boto_session.SESSION_MUST_RENEW_S - 1.0
    express.run(body)
    assert len(express.sessions) > 3
    assert {each.status for each in express.seen if each.status >= 400} <= {404}


@pytest.mark.parametrize("how", ["forgotten", "expired"])
def test_a_session_that_the_store_ended_is_begun_anew(express: ExpressServer, how: str) -> None:
    async def body(store: Store) -> None:
        await store.put("a", b"1", PLAIN)
        for token, (access, secret, _) in list(express.sessions.items()):
            express.sessions[token] = (access, secret, time.time() - 1)
        if how == "forgotten":
            express.sessions.clear()
        await store.put("b", b"2", PLAIN)

    express.run(body)
    assert set(express.contents()) == {"a", "b"}
    refused = [each.status for each in express.seen if each.status in (400, 403)]
    assert refused == [403 if how == "forgotten" else 400]


def test_who_may_begin_no_session_is_told_so(
    express: ExpressServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    async def body(store: Store) -> None:
        with pytest.raises(AccessDeniedError, match="secret access key"):
            await store.head("a")

    express.run(body)


@pytest.mark.parametrize("endpoint", [None, "https://s3express-use1-az4.us-east-1.amazonaws.com"])
def test_the_address_is_the_zones(express: ExpressServer, endpoint: str | None) -> None:
    address = bind(StoreConfig(bucket=BUCKET, region="us-east-1", endpoint_url=endpoint)).address
    assert address.base_url == f"https://{BUCKET}.s3express-use1-az4.us-east-1.amazonaws.com"
    assert address.path == ""
    assert address.account_signer is not None


def test_lists_have_no_order_and_begin_at_folders_only(express: ExpressServer) -> None:
    names = [f"n{number:05d}" for number in range(6000)]
    for name in names:
        express.put(f"d/{name}", b"")
    express.put("d/sub/x", b"")
    express.put("dx", b"")

    async def body(store: Store) -> None:
        listing = await list_directory(store, "d/")
        assert sorted(listing.files) == names
        assert listing.directories == {"sub"}
        page = await store.list_page("d", delimiter="/")
        assert {*page.prefixes, *(info.key for info in page.objects)} == {"d/", "dx"}
        with pytest.raises(RejectedError):
            await store.list_page("d/", start_after="d/n1")
        assert await store.list_uploads("d/n") == []
        versions = await store.list_versions_page("d/sub/")
        assert [version.key for version in versions.versions] == ["d/sub/x"]

    express.run(body)
    assert [each for each in express.seen if each.status >= 400] == []


def test_the_probe_finds_what_a_directory_bucket_has(express: ExpressServer) -> None:
    async def body(store: Store) -> None:
        assert (await store.check_bucket()).versioning == "off"
        found = await store.probe(TRIAL)
        assert (found.renames, found.appends) == (True, True)
        assert (found.if_match, found.if_absent, found.atomic) == (True, True, True)
        assert (found.checksum, found.etag_is_md5) == ("crc64nvme", False)
        assert (found.complete_condition, found.copy_condition) == (True, True)
        assert found.lists_versions is False

    express.run(body)
    assert express.contents() == {}
    assert express.bucket.uploads == {}


@pytest.mark.parametrize(
    ("lacks", "found"),
    [("RenameObject", (False, True)), ("PutObject with an offset", (True, False))],
)
def test_the_probe_finds_what_a_directory_bucket_lacks(
    express: ExpressServer, lacks: str, found: tuple[bool, bool]
) -> None:
    """As in Local Zones, where there are neither renames nor appends."""
    express.lacks = frozenset((lacks,))

    async def body(store: Store) -> None:
        told = await store.probe(TRIAL)
        assert (told.renames, told.appends) == found

    express.run(body)
    assert express.contents() == {}


def test_a_rename_moves_all_of_an_object_under_its_conditions(express: ExpressServer) -> None:
    async def body(store: Store) -> None:
        made = await store.put("a +ü/x", b"content", PLAIN)
        source = ContentRef("a +ü/x", made.etag, 7)
        there = await store.put("there", b"other", PLAIN)
        for refused in (ABSENT, Condition(if_match=made.etag)):
            with pytest.raises(PreconditionFailedError):
                await store.rename(source, "there", condition=refused)
        with pytest.raises(PreconditionFailedError):
            await store.rename(ContentRef("a +ü/x", there.etag, 7), "b", condition=ABSENT)
        moved = await store.rename(source, "b", condition=ABSENT)
        info = await store.head("b")
        assert (moved.etag, info.etag) == (made.etag, made.etag)
        assert info.headers is not None
        assert info.headers.metadata == PLAIN.metadata
        with pytest.raises(NoSuchKeyError):
            await store.rename(source, "b")
        await store.rename(info.ref, "there", condition=Condition(if_match=there.etag))

    express.run(body)
    assert express.contents() == {"there": b"content"}


def test_a_rename_whose_answer_is_lost_is_known_by_its_token(express: ExpressServer) -> None:
    lost: list[str] = []

    def loses(name: str, key: str) -> bool:
        is_first = name == "RenameObject" and not lost
        lost.extend([key] * is_first)
        return is_first

    async def body(store: Store) -> None:
        made = await store.put("a", b"content", PLAIN)
        express.loses = loses
        await store.rename(ContentRef("a", made.etag, 7), "b", condition=ABSENT)

    express.run(body)
    assert lost == ["b"]
    assert express.names().count("RenameObject") == 2
    assert express.contents() == {"b": b"content"}


def test_an_append_sends_only_what_is_new(express: ExpressServer, tmp_path: Path) -> None:
    file = tmp_path / "more"
    file.write_bytes(b"....and more")

    async def body(store: Store) -> None:
        made = await store.put("a", b"content", PLAIN)
        first = await store.append(ContentRef("a", made.etag, 7), FileSlice(str(file), 4, 8))
        assert first.etag != made.etag
        with pytest.raises(PreconditionFailedError):
            await store.append(ContentRef("a", made.etag, 7), b"late")
        with pytest.raises(PreconditionFailedError):
            await store.append(ContentRef("a", first.etag, 7), b"wrong size")
        with pytest.raises(PreconditionFailedError):
            await store.append(ContentRef("gone", first.etag, 7), b"x")
        info, data = await store.get("a")
        assert (data, info.etag, info.is_proven) == (b"contentand more", first.etag, True)
        express.bucket.habits.appended_parts_max = 2
        with pytest.raises(RejectedError) as refused:
            await store.append(info.ref, b"!")
        assert refused.value.code == "TooManyParts"

    express.run(body)
    sent = [each.body_bytes for each in express.seen if "x-amz-write-offset-bytes" in each.headers]
    assert sent[0] == 8
