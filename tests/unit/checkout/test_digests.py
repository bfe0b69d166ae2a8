"""The table of digests: found again, in order and out of it, bounded, and told from other versions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount import db
from s3mount.checkout import digests, folder_state
from s3mount.checkout.digests import DigestIndex, Row
from s3mount.manifest.model import Entry


def row(path: str, size: int = 1, **changes: Any) -> Row:
    made = Row(path, "b", "v1", "e1", size, 2, 3, 4, b"d" * 16)
    return made._replace(**changes)


def test_found_again(tmp_path: Path) -> None:
    index = DigestIndex.open(tmp_path, Path("/target"))
    assert index.find("a") is None
    for n in range(digests.BATCH_ROWS + 10):
        index.put(row(f"f{n}", n))
    index.close()
    index = DigestIndex.open(tmp_path, Path("/target"))
    assert index.find("f7") == row("f7", 7)
    index.put(row("f7", 70))
    index.close()
    index = DigestIndex.open(tmp_path, Path("/target"))
    assert index.find("f7") == row("f7", 70)
    index.close()
    other = DigestIndex.open(tmp_path, Path("/other"))
    assert other.find("f7") is None
    other.close()


@given(
    st.lists(st.text(alphabet="ab/é\U0001f600z-", min_size=1, max_size=4), max_size=30),
    st.lists(st.text(alphabet="ab/é\U0001f600z-", min_size=1, max_size=4), max_size=60),
    st.booleans(),
)
def test_any_order(
    tmp_path_factory: pytest.TempPathFactory, held: list[str], asked: list[str], in_order: bool
) -> None:
    folder = tmp_path_factory.mktemp("index")
    index = DigestIndex.open(folder, Path("/t"))
    for path in held:
        index.put(row(path))
    index.flush()
    for path in sorted(asked) if in_order else asked:
        assert (index.find(path) is not None) is (path in held)
    index.close()


def test_long_jumps(tmp_path: Path) -> None:
    index = DigestIndex.open(tmp_path, Path("/t"))
    names = [f"{n:06}" for n in range(5000)]
    for name in names:
        index.put(row(name))
    index.flush()
    for step in (1, 7, 900, 4999):
        for name in names[::step]:
            found = index.find(name)
            assert found is not None
            assert found.path == name
            assert index.find(name + "x") is None
    index.close()


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "ROWS_MAX", 10)
    monkeypatch.setattr(digests, "TABLES_MAX", 3)
    for run in range(3):
        index = DigestIndex.open(tmp_path, Path("/t"))
        for n in range(8):
            index.put(row(f"{run}-{n}"))
        index.close()
    index = DigestIndex.open(tmp_path, Path("/t"))
    left = [f"{run}-{n}" for run in range(3) for n in range(8) if index.find(f"{run}-{n}")]
    index.close()
    assert len(left) == 10
    assert {f"2-{n}" for n in range(8)} <= set(left)
    for number in range(6):
        index = DigestIndex.open(tmp_path, Path(f"/t{number}"))
        index.put(row("f"))
        index.close()
    assert len(list((tmp_path / "checkouts").glob("*.sqlite"))) <= 3


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        (Entry("b", "k", "v1", 1, "e1"), True),
        (Entry("b", "k", "v2", 1, "e1"), True),
        (Entry("b", "k", "v1", 1, "e2"), False),
        (Entry("b", "k", "v1", 2, "e1"), False),
        (Entry("b", "k", "v1"), True),
        (Entry("b", "k", "v2"), False),
        (Entry("c", "k", "v1"), False),
        (Entry("b", "k", None), False),
        (Entry("b", "k", None, None, "e1"), True),
    ],
)
def test_which_version_a_row_holds(entry: Entry, holds: bool) -> None:
    assert row("k").holds(entry) is holds


def test_a_null_version_is_not_known_by_its_name() -> None:
    entry = Entry("b", "k", "null")
    assert not row("k", version_id="null").holds(entry)
    assert not row("k", bucket="", etag="", unlike="e9").holds(Entry("b", "k", "v1"))


def test_untouched(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    found = path.stat()
    kept = digests.row_of("f", Entry("b", "k", "v"), found, b"d")
    assert kept.is_of(path.stat())
    path.chmod(0o600)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert not kept.is_of(path.stat())


def test_what_was_remembered_before_anything_had_to_be_proven_is_forgotten(tmp_path: Path) -> None:
    """Damaged bytes of uploads in parts were remembered as right then."""
    place = folder_state.place_of(tmp_path, Path("/t"), "sqlite")
    place.parent.mkdir(parents=True)
    before = db.open_database(place, digests.MIGRATIONS[:1])
    before.execute(
        "INSERT INTO file VALUES ('f', 'b', 'v1', 'e1', 1, 2, 3, 4, ?, '', 1)", (b"d" * 16,)
    )
    before.close()
    index = DigestIndex.open(tmp_path, Path("/t"))
    assert index.find("f") is None
    index.put(row("f", is_proven=False))
    index.flush()
    assert index.find("f") == row("f", is_proven=False)
    index.close()
