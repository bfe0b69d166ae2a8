"""The table of known contents: bounded, safe to lose, found by what a content begins with."""

from __future__ import annotations

from pathlib import Path

from s3mount.dedupe.index import ContentIndex
from s3mount.refs import ContentRef

HIGH = (1 << 64) - 5
"""A checksum above what SQLite's integers hold."""


def ref(key: str, etag: str = "e", size: int = 300_000) -> ContentRef:
    return ContentRef(key, etag, size, None)


def test_what_was_added_is_found_by_its_beginning_also_by_the_next_mount(tmp_path: Path) -> None:
    path = tmp_path / "contents.sqlite"
    index = ContentIndex(path)
    index.add(ref("a"), [HIGH, 2, 3])
    index.add(ref("b"), [HIGH, 2, 4])
    index.add(ref("short", size=200_000), [HIGH, 2])
    index.close()
    again = ContentIndex(path)
    assert [known.ref.key for known in again.beginning_with(HIGH)] == ["short", "b", "a"]
    (first, second) = again.beginning_with(HIGH, size=300_000)
    assert (list(first.sums), list(second.sums)) == ([HIGH, 2, 4], [HIGH, 2, 3])
    assert again.beginning_with(2) == []
    assert again.of(ref("a")) == second
    assert again.of(ref("a", "newer")) is None
    again.close()


def test_a_key_holds_one_content_or_none(tmp_path: Path) -> None:
    index = ContentIndex(tmp_path / "contents.sqlite")
    index.add(ref("a", "old"), [1])
    index.add(ref("a", "new"), [1])
    assert [known.ref.etag for known in index.beginning_with(1)] == ["new"]
    index.forget("a")
    index.forget("a")
    assert index.beginning_with(1) == []
    index.close()


def test_it_stays_within_its_bounds_and_forgets_the_oldest(tmp_path: Path) -> None:
    by_count = ContentIndex(tmp_path / "count.sqlite", entries_max=50)
    for number in range(500):
        by_count.add(ref(f"{number}"), [number])
        assert len(by_count) <= 50
    assert by_count.beginning_with(499)
    assert not by_count.beginning_with(1)
    by_count.close()
    by_bytes = ContentIndex(tmp_path / "bytes.sqlite", sums_bytes_max=8000)
    for number in range(100):
        by_bytes.add(ref(f"{number}"), [number] * 50)
        assert len(by_bytes) <= 20
    by_bytes.add(ref("99"), [99] * 101)
    assert not by_bytes.beginning_with(99), "too large to be worth it"
    by_bytes.close()


def test_a_damaged_file_costs_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "contents.sqlite"
    path.write_bytes(b"not a database at all" * 1000)
    index = ContentIndex(path)
    index.add(ref("a"), [1])
    assert index.beginning_with(1) == []
    assert index.of(ref("a")) is None
    index.forget("a")
    index.close()
