from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.bulk.digesting import new_hash, parse_sum_line, sum_line
from s3mount.bulk.matching import Pair, Pairs, are_same
from s3mount.bulk.selecting import Item
from s3mount.bulk.sync_memory import SyncMemory
from s3mount.errors import AlgorithmError, ChecksumError, InternalError
from s3mount.refs import ObjectDigests


class Batches:
    def __init__(self, names: list[str], size: int) -> None:
        items = [Item(name, name) for name in names]
        self._batches = iter([items[n : n + size] for n in range(0, len(items), size)])

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> list[Item]:
        await trio.lowlevel.checkpoint()
        for batch in self._batches:
            return batch
        raise StopAsyncIteration


def merged(left: list[str], right: list[str], size: int = 3) -> list[Pair]:
    async def main() -> list[Pair]:
        return [pair async for pair in Pairs(Batches(left, size), Batches(right, size))]

    return trio.run(main)


@given(st.sets(st.text(max_size=3)), st.sets(st.text(max_size=3)), st.integers(1, 5))
def test_two_lists_are_merged_as_sets_would_be(left: set[str], right: set[str], size: int) -> None:
    found = merged(sorted(left), sorted(right), size)
    assert {p.left.name for p in found if p.left is not None} == left
    assert {p.right.name for p in found if p.right is not None} == right
    both = {p.left.name for p in found if p.left is not None and p.right is not None}
    assert both == left & right
    assert len(found) == len(left | right)


def test_a_list_out_of_order_is_not_believed() -> None:
    with pytest.raises(InternalError, match="not in order"):
        merged(["b", "a"], ["c"])


def digests(etag: str, *, is_digest: bool = True, **more: object) -> ObjectDigests:
    return ObjectDigests(5, etag, is_digest, **more)  # type: ignore[arg-type]


M1, M2 = ("a" * 32), ("b" * 32)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (digests(M1), digests(M1), True),
        (digests(M1), digests(M2), False),
        (digests(f"{M1}-2"), digests(f"{M1}-2"), True),
        (digests(f"{M1}-2"), digests(f"{M2}-2"), None),
        (digests(f"{M1}-2"), digests(M2), None),
        (digests(M1, is_digest=False), digests(M1, is_digest=False), None),
        (
            digests(M1, checksums={"crc64nvme": "x"}),
            digests(M2, checksums={"crc64nvme": "x"}),
            True,
        ),
        (digests(M1, checksums={"sha1": "x"}), digests(M2, checksums={"crc32": "y"}), False),
        (
            digests(f"{M1}-2", checksums={"sha1": "x"}, is_composite=True),
            digests(M2, checksums={"sha1": "x"}),
            None,
        ),
    ],
)
def test_what_digests_tell_of_two_objects(
    left: ObjectDigests, right: ObjectDigests, expected: bool | None
) -> None:
    assert are_same(left, right) is expected
    assert are_same(right, left) is expected


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_sum_line_is_read_as_it_was_written(name: str) -> None:
    assert parse_sum_line(sum_line("ab12", name)) == ("ab12", name)
    assert "\n" not in sum_line("ab12", name)


@pytest.mark.parametrize("line", ["", "ab12", "ab12 x", "zz  x", "ab12  ", "ab1  x"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ChecksumError):
        parse_sum_line(line)


def test_every_algorithm_has_a_digest() -> None:
    for name in ("MD5", "sha512", "sha3_256", "blake2b", "crc64nvme", "crc32c", "crc32"):
        running = new_hash(name)
        running.update(memoryview(b"123456789"))
        assert running.digest()
    crc = new_hash("crc64nvme")
    crc.update(memoryview(b"123456789"))
    assert crc.digest().hex() == "ae8b14860a799888"
    assert base64.b64encode(hashlib.md5(b"").digest())
    for name in ("md55", "shake_128", ""):
        with pytest.raises(AlgorithmError):
            new_hash(name)


def test_what_was_found_to_be_the_same_is_remembered(tmp_path: Path) -> None:
    file = Item("d/a", "a", 5, 77, ctime_ns=78)
    memory = SyncMemory(tmp_path, "d", "s3://b/")
    assert not memory.knows(file, "etag")
    memory.remember(file, "etag")
    memory.close()
    memory = SyncMemory(tmp_path, "d", "s3://b/")
    assert memory.knows(file, "etag")
    assert not memory.knows(file, "etag", by_bytes=True)
    assert not memory.knows(Item("d/a", "a", 5, 78), "etag")
    assert not memory.knows(Item("d/a", "a", 6, 77), "etag")
    assert not memory.knows(file, "other")
    memory.close()
    other = SyncMemory(tmp_path, "e", "s3://b/")
    assert not other.knows(file, "etag")
    other.close()
    (tmp_path / "file").write_text("in the way")
    useless = SyncMemory(tmp_path / "file", "d", "s3://b/")
    useless.remember(file, "etag")
    assert not useless.knows(file, "etag")
    useless.close()


def test_that_bytes_are_the_same_is_remembered_until_the_file_is_touched(tmp_path: Path) -> None:
    file = Item("d/a", "a", 5, 77, ctime_ns=78)
    memory = SyncMemory(tmp_path, "d", "s3://b/")
    memory.remember(file, "etag", by_bytes=True)
    memory.close()
    memory = SyncMemory(tmp_path, "d", "s3://b/")
    assert memory.knows(file, "etag", by_bytes=True)
    assert memory.knows(file, "etag")
    touched = Item("d/a", "a", 5, 77, ctime_ns=79)
    assert not memory.knows(touched, "etag", by_bytes=True)
    assert memory.knows(touched, "etag")
    memory.close()
