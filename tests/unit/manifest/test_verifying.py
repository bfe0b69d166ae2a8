from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from s3mount.errors import NetworkError, NoSuchBucketError
from s3mount.manifest import verifying
from s3mount.manifest.buckets import open_buckets
from s3mount.manifest.model import Entry
from s3mount.manifest.verifying import Problem, Verification, verify
from s3mount.refs import BucketInfo, ObjectDigests, ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore

PLAIN = ObjectHeaders()


def checked(
    stores: dict[str, MemoryStore], entries: list[Entry], *, content: bool = False
) -> tuple[Verification, dict[str, str]]:
    problems: dict[str, str] = {}
    found = Verification()

    def report(problem: Problem) -> None:
        why = "unproven" if problem.is_unproven else problem.why
        assert problems.setdefault(problem.entry.key, why) is why

    @asynccontextmanager
    async def open_store(bucket: str) -> AsyncIterator[Store]:
        await trio.lowlevel.checkpoint()
        yield stores[bucket]

    async def main() -> None:
        async with open_buckets(open_store) as buckets:
            await verify(entries, buckets, report, found, content=content)

    trio.run(main)
    return found, problems


@pytest.mark.parametrize("content", [False, True])
def test_what_is_gone_or_other_is_named_and_nothing_else(content: bool) -> None:
    one, two = MemoryStore("one", versioning="enabled"), MemoryStore("two")
    entries: list[Entry] = []

    async def fill() -> None:
        for key in ("right", "gone", "deleted", "empty"):
            data = b"" if key == "empty" else key.encode()
            put = await one.put(key, data, PLAIN)
            entries.append(Entry("one", key, put.version_id, len(data), put.etag))
            await one.put(key, b"later", PLAIN)
        await one.delete("gone", version_id=entries[1].version_id)
        await one.delete("deleted")
        for key in ("null", "rewritten", "resized", "unknown"):
            put = await two.put(key, b"first", PLAIN)
            entries.append(Entry("two", key, "null", 5, put.etag))
        await two.put("rewritten", b"other", PLAIN)
        await two.put("resized", b"longer than before", PLAIN)
        entries.append(Entry("two", "two columns", None))

    trio.run(fill)
    found, problems = checked({"one": one, "two": two}, entries, content=content)
    assert found.checked == 9
    assert found.problems == len(problems)
    assert problems.keys() == {"gone", "rewritten", "resized", "two columns"}
    assert problems["gone"] == "is not there any more"
    assert problems["resized"] == "has 18 bytes, the manifest says 5"
    assert "has the ETag" in problems["rewritten"]
    assert found.bytes_read == (len("rightdeleted") + 2 * len("first") if content else 0)


def test_damaged_bytes_are_found_by_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PIECE_BYTES", 4)
    store = MemoryStore("b")
    entries: list[Entry] = []

    async def fill() -> None:
        for key in ("right", "damaged"):
            put = await store.put(key, key.encode(), PLAIN)
            entries.append(Entry("b", key, None, len(key), put.etag))
        bucket = store._bucket
        [version] = bucket.versions["damaged"]
        bucket.versions["damaged"] = [type(version)(version.info, b"DAMAGED")]

    trio.run(fill)
    assert checked({"b": store}, entries)[1] == {}
    found, problems = checked({"b": store}, entries, content=True)
    assert problems == {"damaged": "has other bytes than its ETag or checksum says"}
    # What seems to be wrong is read once more: it may have changed on its way.
    assert found.bytes_read == 5 + 2 * 7


LENGTHS = (5, 9, 2)


def parts_in(store: MemoryStore, data: bytes, *, damage: bool) -> Entry:
    """An object of parts that no tool makes, altered in the store or not."""

    async def fill() -> Entry:
        upload = await store.create_multipart("k", PLAIN)
        parts = [
            await store.upload_part(
                "k", upload, number, data[sum(LENGTHS[: number - 1]) :][:length]
            )
            for number, length in enumerate(LENGTHS, 1)
        ]
        put = await store.complete_multipart("k", upload, parts)
        return Entry("b", "k", None, len(data), put.etag)

    entry = trio.run(fill)
    if damage:
        [version] = store._bucket.versions["k"]
        altered = type(version)(version.info, version.data[::-1], version.part_lengths)  # type: ignore[index]
        store._bucket.versions["k"] = [altered]
    return entry


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("tells", ["nothing", "parts"])
def test_parts_are_proven_as_far_as_the_store_tells(damage: bool, tells: str) -> None:
    store = MemoryStore("b", part_bytes_min=1)
    store.tells_part_lengths = tells == "parts"
    entry = parts_in(store, bytes(range(16)), damage=damage)
    found, problems = checked({"b": store}, [entry], content=True)
    if tells == "nothing":
        assert (found.problems, found.unproven, problems) == (0, 1, {"k": "unproven"})
    else:
        assert (found.problems, found.unproven) == (int(damage), 0)
        assert list(problems) == ["k"] * damage


@pytest.mark.parametrize("damage", [False, True])
def test_with_ssekms_a_checksum_proves_and_nothing_else(damage: bool) -> None:
    store = MemoryStore("b", opaque_etags=True)

    async def fill() -> Entry:
        put = await store.put("k", b"abc", PLAIN)
        return Entry("b", "k", None, 3, put.etag)

    entry = trio.run(fill)
    [version] = store._bucket.versions["k"]
    store.tells_checksums = True
    checksums = trio.run(store.digests, "k").checksums
    if damage:
        store._bucket.versions["k"] = [type(version)(version.info, b"abd")]
    store.tells_checksums = False
    assert checked({"b": store}, [entry], content=True)[1] == {"k": "unproven"}

    async def digests(key: str, *, version_id: str | None = None) -> ObjectDigests:
        await trio.lowlevel.checkpoint()
        return ObjectDigests(3, entry.etag, False, checksums)

    store.digests = digests  # type: ignore[method-assign]
    found, problems = checked({"b": store}, [entry], content=True)
    assert (found.problems, found.unproven, list(problems)) == (damage, 0, ["k"] * damage)


class Broken(MemoryStore):
    """Of some keys, or of all with the bucket itself, nothing comes."""

    broken: Callable[[str], bool] = staticmethod(lambda key: True)
    answers = True

    async def fetch(self, key: str, *given: Any, **more: Any) -> ObjectInfo:
        if self.broken(key):
            raise NetworkError("the answer broke off")
        return await super().fetch(key, *given, **more)

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        if not self.answers:
            raise NetworkError("no route")
        return await super().check_bucket(prefix)


def filled(store: MemoryStore, count: int) -> list[Entry]:
    async def fill() -> list[Entry]:
        puts = [(f"k{n}", await store.put(f"k{n}", b"x", PLAIN)) for n in range(count)]
        return [Entry("b", key, None, 1, put.etag) for key, put in puts]

    return trio.run(fill)


def test_bodies_that_break_off_are_named_and_the_rest_is_checked() -> None:
    store = Broken("b")
    entries = filled(store, 40)
    store.broken = lambda key: key.endswith("3")
    found, problems = checked({"b": store}, entries, content=True)
    assert (found.checked, found.problems, found.unread, found.stopped) == (40, 4, 4, "")
    assert problems == dict.fromkeys(
        ("k3", "k13", "k23", "k33"), "cannot be read: the answer broke off"
    )
    # As long as the store answers at all, each is tried.
    store.broken = lambda key: True
    found, problems = checked({"b": store}, entries, content=True)
    assert (found.checked, found.problems, len(problems)) == (40, 40, 40)


def test_a_store_that_does_not_answer_ends_it_with_what_was_found() -> None:
    store = Broken("b")
    entries = filled(store, 100)
    store.answers = False
    found, _ = checked({"b": store}, entries, content=True)
    assert found.stopped == "the answer broke off"
    assert found.checked < 100


def test_a_bucket_that_is_gone_is_named_for_each_of_its_keys_and_others_go_on() -> None:
    here, gone = MemoryStore("here"), MemoryStore("gone")
    entries = filled(here, 3)
    entries = [Entry("here", e.key, None, e.size, e.etag) for e in entries]
    entries += [Entry("gone", f"g{n}", "v") for n in range(3)]
    asked: list[str] = []

    async def head(key: str, **more: Any) -> ObjectInfo:
        await trio.lowlevel.checkpoint()
        asked.append(key)
        raise NoSuchBucketError("no bucket called 'gone'")

    gone.head = head  # type: ignore[method-assign]
    found, problems = checked({"here": here, "gone": gone}, entries)
    assert (found.checked, found.problems, found.unread, found.stopped) == (6, 3, 3, "")
    assert problems.keys() == {"g0", "g1", "g2"}


def test_what_is_wrong_is_told_in_the_order_of_the_manifest() -> None:
    class Late(MemoryStore):
        async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
            await trio.sleep((7 * int(key)) % 10)
            return await super().head(key, version_id=version_id)

    told: list[str] = []

    @asynccontextmanager
    async def open_store(bucket: str) -> AsyncIterator[Store]:
        await trio.lowlevel.checkpoint()
        yield Late(bucket)

    async def main() -> None:
        async with open_buckets(open_store) as buckets:
            entries = [Entry("b", str(number), None) for number in range(30)]
            await verify(entries, buckets, lambda p: told.append(p.entry.key), Verification())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert told == [str(number) for number in range(30)]
