from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.config import MIB
from s3mount.errors import NetworkError
from s3mount.manifest import verifying
from s3mount.manifest.buckets import open_buckets
from s3mount.manifest.model import Entry
from s3mount.manifest.proving import EtagTrial, part_lengths
from s3mount.manifest.verifying import Problem, Verification, verify
from s3mount.refs import ObjectHeaders
from s3mount.s3.memory import MemoryStore
from s3mount.s3.store import Store

PLAIN = ObjectHeaders()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def etag_of(data: bytes, length: int) -> str:
    pieces = [data[start : start + length] for start in range(0, len(data), length)]
    digests = b"".join(bytes.fromhex(md5(piece)) for piece in pieces)
    return f"{md5(digests)}-{len(pieces)}"


@given(st.binary(min_size=1, max_size=300), st.integers(1, 40), st.data())
def test_bytes_are_proven_by_an_etag_of_parts(data: bytes, cut: int, more: st.DataObject) -> None:
    etag = etag_of(data, len(data))
    trial = EtagTrial(etag, len(data))
    plain = EtagTrial(md5(data), len(data))
    for start in range(0, len(data), cut):
        trial.update(memoryview(data[start : start + cut]))
        plain.update(memoryview(data[start : start + cut]))
    assert trial.proves
    assert trial.holds() is True
    assert plain.holds() is True
    other = EtagTrial(md5(data + b"x"), len(data))
    other.update(memoryview(data))
    assert other.holds() is False


@pytest.mark.parametrize("length_mib", [5, 7, 8, 16])
def test_usual_and_odd_part_lengths_are_found(length_mib: int) -> None:
    data = bytes(range(256)) * (40 * 4096 + 3)
    etag = etag_of(data, length_mib * MIB)
    assert length_mib * MIB in part_lengths(etag, len(data))
    trial = EtagTrial(etag, len(data))
    trial.update(memoryview(data))
    assert trial.holds() is True


@pytest.mark.parametrize("etag", ["", "opaque", "x-3", f"{'0' * 32}-0", f"{'0' * 32}-9"])
def test_what_is_no_digest_proves_nothing(etag: str) -> None:
    trial = EtagTrial(etag, 5)
    assert not trial.proves


def checked(
    stores: dict[str, MemoryStore], entries: list[Entry], *, content: bool = False
) -> tuple[Verification, dict[str, str]]:
    problems: dict[str, str] = {}
    found = Verification()

    def report(problem: Problem) -> None:
        problems[problem.entry.key] = problem.why

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
    assert problems == {"damaged": "has other bytes than its ETag says"}
    assert found.bytes_read == 12


def test_a_store_that_does_not_answer_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("b")

    async def fail(*_: object, **__: object) -> None:
        raise NetworkError("no route")

    monkeypatch.setattr(store, "head", fail)
    with pytest.raises(NetworkError, match="no route"):
        checked({"b": store}, [Entry("b", "k", "v")] * 3)
