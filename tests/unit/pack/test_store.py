"""Members of packs as objects of a store: lists, reads, writes and deletions beside plain objects and other packs."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest
import trio

from s3mount.errors import NoSuchKeyError, PreconditionFailedError
from s3mount.pack.store import PackedStore
from s3mount.refs import ANY, Condition, ContentRef, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore

PLAIN = ObjectHeaders()
NEW = Condition(if_absent=True)


class Counted(MemoryStore):
    """Another client of a bucket, which counts what it asks."""

    def __init__(self, bucket: MemoryStore) -> None:
        super().__init__()
        self._bucket = bucket._bucket
        self.gets = 0

    async def get(self, *args: object, **named: object) -> object:  # type: ignore[override]
        self.gets += 1
        return await super().get(*args, **named)  # type: ignore[arg-type]


Opener = Callable[..., Awaitable[PackedStore]]


def run(main: Callable[[MemoryStore, Opener], Awaitable[None]]) -> None:
    """``main`` gets a bucket, and opens stores with packs on it."""

    async def bounded() -> None:
        bucket = MemoryStore()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def opened(store: MemoryStore | None = None) -> PackedStore:
                    packed = PackedStore(
                        store or bucket.observer(), "memory", "p/", ttl_s=0.05, below=10_000
                    )
                    await nursery.start(packed.run)
                    return packed

                await main(bucket, opened)
                nursery.cancel_scope.cancel()

    trio.run(bounded)


async def put_all(store: PackedStore, files: dict[str, bytes]) -> None:
    async with trio.open_nursery() as nursery:
        for key, body in files.items():

            async def put(key: str = key, body: bytes = body) -> None:
                await store.put(key, body, PLAIN, condition=NEW)

            nursery.start_soon(put)


async def listed(store: PackedStore, prefix: str, delimiter: str | None, step: int) -> list[str]:
    """All names, in pages of ``step``; they must come in order and once."""
    names: list[str] = []
    token = None
    while True:
        page = await store.list_page(prefix, delimiter=delimiter, token=token, max_keys=step)
        names += sorted([info.key for info in page.objects] + list(page.prefixes))
        token = page.next_token
        if token is None:
            assert names == sorted(set(names))
            return names


def test_lists_have_members_and_objects_in_one_order_whatever_the_pages() -> None:
    async def main(bucket: MemoryStore, opened: Opener) -> None:
        store = await opened()
        members = {f"p/{n % 5}/{n % 3}/{n:02}": b"m%d" % n for n in range(40)}
        members |= {f"p/m{n:02}": b"x" for n in range(9)}
        await put_all(store, members)
        plain = {f"p/{n % 7}/o{n:02}" for n in range(30)} | {f"p/o{n}" for n in range(12)}
        for key in plain:
            await bucket.put(key, b"plain", PLAIN)
        both = members.keys() | plain
        other = await opened()
        for step in (1, 3, 1000):
            flat = [key for key in await listed(other, "p/", None, step) if key[-1] != "/"]
            assert flat == sorted(both)
            top = {key if key.count("/") == 1 else key[:4] for key in both}
            assert set(await listed(other, "p/", "/", step)) - {"p/"} == top
            deep = await listed(other, "p/1/", "/", step)
            assert set(deep) == {
                "p/1/",
                *(k if k.count("/") == 2 else k[:6] for k in both if k.startswith("p/1/")),
            }

    run(main)


def test_many_puts_are_one_pack_and_neighbours_come_by_one_request() -> None:
    async def main(bucket: MemoryStore, opened: Opener) -> None:
        store = await opened()
        files = {f"p/f{n:03}": b"%d" % n * 50 for n in range(200)}
        await put_all(store, files)
        assert sorted(key[-4:] for key in bucket.contents()) == [".idx", ".tar"]
        counted = Counted(bucket)
        other = await opened(counted)
        await other.head("p/f000")
        counted.gets = 0
        for key, body in files.items():
            info, data = await other.get(key)
            assert data == body
            assert info.etag == "pack-" + hashlib.sha256(body).hexdigest()
        assert counted.gets == 1

    run(main)


def test_an_object_hides_a_member_and_a_later_entry_an_earlier_one() -> None:
    async def main(bucket: MemoryStore, opened: Opener) -> None:
        store, other = await opened(), await opened()
        first = await store.put("p/a", b"one", PLAIN, condition=NEW)
        with pytest.raises(PreconditionFailedError):
            await other.put("p/a", b"two", PLAIN, condition=NEW)
        await other.put("p/a", b"two", PLAIN, condition=Condition(if_match=first.etag))
        with pytest.raises(PreconditionFailedError):
            await store.put("p/a", b"three", PLAIN, condition=Condition(if_match=first.etag))
        await trio.sleep(0.1)
        assert (await store.get("p/a"))[1] == b"two"
        await bucket.put("p/a", b"by somebody else", PLAIN)
        await trio.sleep(0.1)
        assert (await store.get("p/a"))[1] == b"by somebody else"
        with pytest.raises(PreconditionFailedError):
            await store.put("p/a", b"three", PLAIN, condition=NEW)
        await store.delete("p/a")
        for each in (store, await opened()):
            with pytest.raises(NoSuchKeyError):
                await each.head("p/a")

    run(main)


def test_a_large_body_replaces_a_member_and_buries_it() -> None:
    async def main(bucket: MemoryStore, opened: Opener) -> None:
        store = await opened()
        there = await store.put("p/a", b"one", PLAIN, condition=NEW)
        wanted = Condition(if_match=there.etag)
        await store.put("p/a", b"x" * 20_000, PLAIN, condition=wanted)
        with pytest.raises(PreconditionFailedError):
            await store.put("p/a", b"y" * 20_000, PLAIN, condition=wanted)
        # Somebody who knows of no packs removes the object: the member is not there again.
        await bucket.delete("p/a")
        with pytest.raises(NoSuchKeyError):
            await (await opened()).head("p/a")

    run(main)


def test_what_an_object_hides_by_the_time_its_pack_is_there_was_not_written() -> None:
    class Racing(MemoryStore):
        async def put(self, key: str, *args: object, **named: object) -> object:  # type: ignore[override]
            done = await super().put(key, *args, **named)  # type: ignore[arg-type]
            if key.endswith(".tar"):
                await super().put("p/a", b"theirs", PLAIN, condition=ANY)
            return done

    async def main(bucket: MemoryStore, opened: Opener) -> None:
        racing = Racing()
        racing._bucket = bucket._bucket
        store = await opened(racing)
        with pytest.raises(PreconditionFailedError):
            await store.put("p/a", b"ours", PLAIN, condition=NEW)

    run(main)


def test_attributes_copies_and_deletions_of_members() -> None:
    async def main(bucket: MemoryStore, opened: Opener) -> None:
        store = await opened()
        headers = ObjectHeaders({"mode": "33188", "mtime": "1.500000000", "x": "y"}, "text/plain")
        put = await store.put("p/d/a", b"body", headers, condition=NEW)
        assert (await store.head("p/d/a")).headers == headers
        source = ContentRef("p/d/a", put.etag, 4)
        await store.copy(source, "p/d/b", None, condition=NEW)
        other = await opened()
        info, body = await other.get("p/d/b")
        assert (info.headers, body) == (headers, b"body")
        with pytest.raises(PreconditionFailedError):
            await other.delete("p/d/a", if_match="pack-other")
        assert await other.delete_many(["p/d/a", "p/d/none", "p/d/b"]) == [None] * 3
        assert await listed(other, "p/", None, 10) == []
        assert [key for key in bucket.contents() if not key.endswith((".tar", ".tar.idx"))] == []

    run(main)
