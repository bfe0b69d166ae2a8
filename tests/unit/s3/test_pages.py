"""Pages that repeat, go back, end early or hold what XML cannot; and ranges under status 200."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
import trio

from s3mount.errors import NotS3Error
from s3mount.refs import ByteRange, FileSlice
from s3mount.s3.client import S3Store
from tests.unit.s3.fault_server import Behaviour, Exchange, FaultServer, faulty_store

Answers = Callable[[dict[str, str]], str]


def run(body: Callable[[FaultServer, S3Store], Awaitable[None]], *, tries_max: int = 3) -> None:
    async def main() -> None:
        async with faulty_store(tries_max=tries_max) as (server, store):
            await body(server, store)

    trio.run(main)


def contents(keys: str | list[str]) -> str:
    return "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag>"
        "<LastModified>2026-11-21T01:24:00Z</LastModified></Contents>"
        for key in keys
    )


def page(keys: str | list[str], token: str = "", count: int | None = None) -> str:
    """What is in a page of these keys."""
    told = len(keys) if count is None else count
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    truncated = "true" if token else "false"
    return (
        f"<KeyCount>{told}</KeyCount><IsTruncated>{truncated}</IsTruncated>{more}{contents(keys)}"
    )


def lists(pages: dict[str, str]) -> Behaviour:
    """A server whose page to each token is this."""

    async def answer(exchange: Exchange) -> None:
        token = exchange.query.get("continuation-token", "")
        await exchange.document("ListBucketResult", pages[token])

    return answer


async def all_keys(store: S3Store) -> list[str]:
    keys: list[str] = []
    token: str | None = None
    while True:
        found = await store.list_page("", token=token)
        keys += [info.key for info in found.objects]
        token = found.next_token
        if token is None:
            return keys


@pytest.mark.parametrize(
    "pages",
    [
        {"": page("ab", "1"), "1": page("ab")},
        {"": page("ab", "1"), "1": page("ab", "2"), "2": page("c")},
        {"": page("ab", "1"), "1": page("cd", "1")},
        {"": page("ab", "1"), "1": page("cd", "2"), "2": page("ab", "1")},
        {"": page("ab", "1"), "1": page("b", "2"), "2": page("b", "3"), "3": page("c")},
        {"": page("abb")},
        {"": page("ab", count=3)},
        {"": page("ab", "1"), "1": page("cd", count=5)},
    ],
    ids=[
        *("repeated at the end", "repeated", "no advance", "a circle", "the seam for ever"),
        *("twice in a page", "cut", "cut at the end"),
    ],
)
def test_pages_that_cannot_be_right_are_asked_for_again_and_never_believed(
    pages: dict[str, str],
) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = lists(pages)
        with trio.fail_after(60), pytest.raises(NotS3Error):
            await all_keys(store)
        good = {"": page("ab", "1"), "1": page("cd")}
        server.usually = lists(good)
        assert await all_keys(store) == ["a", "b", "c", "d"]

    run(body)


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ({"": page("ab", "1"), "1": page("bc")}, "abc"),
        ({"": page("ab", "1"), "1": page("b")}, "ab"),
        ({"": page("ab", "1"), "1": page("", "2"), "2": page("c")}, "abc"),
        ({"": page("ba", "1"), "1": page("dc")}, "badc"),
        ({"": page(["\uff61", "\U00010000"], "1"), "1": page("\uffee")}, "\uff61\U00010000\uffee"),
    ],
    ids=["an overlap", "only the seam", "an empty page", "no order", "UTF-16's order"],
)
def test_pages_that_some_stores_send_are_taken(pages: dict[str, str], expected: str) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = lists(pages)
        assert "".join(await all_keys(store)) == expected
        assert len(server.seen) == len(pages)

    run(body)


ODD = "o/\x01c"


def encodes(plain: Callable[[Exchange], Awaitable[None]]) -> Behaviour:
    """A server that lists a key with a control character well only where keys are encoded."""

    async def answer(exchange: Exchange) -> None:
        if exchange.query.get("encoding-type") != "url":
            await plain(exchange)
            return
        encoded = "<EncodingType>url</EncodingType>" + page([quote("a"), quote(ODD)])
        await exchange.document("ListBucketResult", encoded)

    return answer


async def fails(exchange: Exchange) -> None:
    await exchange.error(500, "InternalError")


async def breaks(exchange: Exchange) -> None:
    await exchange.answer(200, b"<ListBucketResult><Contents><Key>o/\x01</Contents>")


async def replaces(exchange: Exchange) -> None:
    await exchange.document("ListBucketResult", page(["a", escape(ODD.replace("\x01", "\ufffd"))]))


@pytest.mark.parametrize("plain", [fails, breaks, replaces])
def test_a_key_with_a_control_character_is_listed_encoded(plain: Behaviour) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = encodes(plain)
        assert await all_keys(store) == ["a", ODD]
        assert (await store.check_bucket()).name == "bucket"

    run(body)


def test_an_outage_is_no_reason_to_ask_for_encoded_keys() -> None:
    """Not all stores page well with them: a page without an odd key comes plain."""
    seen: list[str] = []

    async def answer(exchange: Exchange) -> None:
        seen.append(exchange.query.get("encoding-type", "plain"))
        if len(seen) < 3:
            await fails(exchange)
        else:
            await exchange.document("ListBucketResult", page("ab"))

    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = answer
        assert await all_keys(store) == ["a", "b"]
        assert seen[-1] == "plain"

    run(body)


def versions(keys: str, next_key: str = "") -> str:
    about = "<VersionId>v</VersionId><IsLatest>true</IsLatest>"
    listed = contents(keys).replace("<Size>", f"{about}<Size>").replace("Contents>", "Version>")
    more = f"<NextKeyMarker>{next_key}</NextKeyMarker>" if next_key else ""
    return f"<IsTruncated>{'true' if next_key else 'false'}</IsTruncated>{more}{listed}"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (versions("cd"), ["c", "d"]),
        (versions("abcd"), ["c", "d"]),
        (versions("a"), None),
        (versions("cd", "b"), None),
    ],
)
def test_pages_of_versions_go_on_or_are_no_answer(second: str, expected: list[str] | None) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.document("ListVersionsResult", second)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = answer
        if expected is None:
            with pytest.raises(NotS3Error):
                await store.list_versions_page("", key_marker="b")
        else:
            found = await store.list_versions_page("", key_marker="b")
            assert [version.key for version in found.versions] == expected

    run(body)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_range_under_status_200_is_taken_when_it_is_the_one(
    tmp_path: Path, is_right: bool
) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(3))

    async def answer(exchange: Exchange) -> None:
        _, content, headers = exchange.read()
        if not is_right:
            headers["Content-Range"] = "bytes 0-2/7"
        await exchange.answer(200, content, headers)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.usually = answer
        wanted = ByteRange(2, 3)
        if is_right:
            await store.fetch("key", wanted, FileSlice(str(sink), 0, 3))
            assert sink.read_bytes() == b"nte"
            assert (await store.get("key", byte_range=wanted))[1] == b"nte"
            return
        with pytest.raises(Exception, match="another range"):
            await store.fetch("key", wanted, FileSlice(str(sink), 0, 3))
        assert sink.read_bytes() == bytes(3)

    run(body, tries_max=1)
