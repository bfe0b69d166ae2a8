"""A compiled manifest says what a plain dict of its lines says, whatever order they come in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import LocalDiskError, ManifestError
from s3mount.manifest import compiling
from s3mount.manifest.catalog import FILE, IMPLIED, MARKED, ROOT, Catalog, Listed, Row
from s3mount.manifest.compiling import A_DIRECTORY_TOO, NO_PATH, compile_entries
from s3mount.manifest.formats.values import INTEGER_MAX
from s3mount.manifest.model import Entry
from s3mount.names import is_name
from s3mount.refs import ObjectHeaders, ObjectInfo


def quiet(lines: int) -> None:
    """Nobody is told."""


def compiled(folder: Path, entries: Iterable[Entry]) -> Catalog:
    path = folder / "catalog.sqlite"
    compile_entries(entries, path, quiet)
    return Catalog(path)


def entry(key: str, version: str | None = "v", *, bucket: str = "b", size: int | None = 1) -> Entry:
    return Entry(bucket, key, version, size, "e", 10**18)


def walk(catalog: Catalog, number: int = ROOT, path: str = "", page: int = 2) -> Iterator[Row]:
    """Every row below a directory, read by small pages."""
    after = ""
    while rows := catalog.page(number, after, page):
        assert [row.name.encode() for row in rows] == sorted(row.name.encode() for row in rows)
        for row in rows:
            yield row._replace(name=path + row.name)
            if row.is_directory:
                yield from walk(catalog, row.number, f"{path}{row.name}/", page)
        after = rows[-1].name


def model(entries: list[Entry]) -> tuple[dict[str, str | None], set[str], set[str]]:
    """Files with their versions, directories, and directories with a marker, as plain paths."""
    files: dict[str, str | None] = {}
    directories: set[str] = set()
    marked: set[str] = set()
    for each in entries:
        *above, name = f"{each.bucket}/{each.key}".split("/")
        path = ""
        for part in above:
            if not is_name(part):
                break
            path += part
            directories.add(path)
            path += "/"
        else:
            if is_name(name):
                files[path + name] = each.version_id
            elif not name and len(above) > 1:
                marked.add(path[:-1])
    return {path: v for path, v in files.items() if path not in directories}, directories, marked


PARTS = st.sampled_from(
    ["a", "b", "a.b", "a-b", "é", "Z", "..", "", "x" * 256, "\U0001f600", "z" * 80]
)
KEYS = st.builds("/".join, st.lists(PARTS, min_size=1, max_size=4)).filter(bool)
ENTRIES = st.lists(
    st.builds(entry, KEYS, st.sampled_from(["1", "2", None]), bucket=st.sampled_from(["b", "c"])),
    max_size=40,
).map(lambda entries: [{each.order: each for each in entries}[each.order] for each in entries])


@given(ENTRIES, st.integers(1, 8), st.integers(1, 4))
def test_the_tree_is_that_of_the_lines(entries: list[Entry], batch: int, folders: int) -> None:
    files, directories, marked = model(entries)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "BATCH_ROWS", batch)
        patch.setattr(compiling, "DIRECTORIES_MAX", folders)
        catalog = compiled(Path(folder), entries)
        rows = list(walk(catalog))
        assert {row.name: row.version_id for row in rows if row.kind == FILE} == files
        assert {row.name for row in rows if row.is_directory} == directories
        assert {row.name for row in rows if row.kind == MARKED} == marked
        assert len({row.number for row in rows} | {ROOT}) == len(rows) + 1
        assert catalog.meta("files") == len(files)
        assert catalog.meta("bytes") == len(files)
        for row in rows:
            assert catalog.row(row.number) == row._replace(name=row.name.rpartition("/")[2])
        catalog.close()


def test_sorted_lines_and_shuffled_ones_make_the_same_tree(tmp_path: Path) -> None:
    entries = [entry(f"{i % 7}/{i % 3}/{i}", str(i)) for i in range(500)]
    one = compiled(tmp_path, sorted(entries, key=lambda each: each.order))
    (tmp_path / "other").mkdir()
    other = compiled(tmp_path / "other", reversed(entries))
    assert {(row.name, row.version_id) for row in walk(one, page=100)} == {
        (row.name, row.version_id) for row in walk(other, page=100)
    }
    one.close()
    other.close()


def test_numbers_are_the_same_whenever_it_is_compiled(tmp_path: Path) -> None:
    entries = [entry(f"{i % 5}/{i}") for i in range(100)]
    first = compiled(tmp_path, entries)
    rows = list(walk(first))
    first.close()
    again = compiled(tmp_path, entries)
    assert list(walk(again)) == rows
    again.close()


def test_what_has_no_place_is_told(tmp_path: Path) -> None:
    entries = [
        entry("both"),
        entry("both/below"),
        entry("x//y"),
        entry("same", "1"),
        entry("same", "1"),
        entry("\ud800"),
    ]
    catalog = compiled(tmp_path, entries)
    assert sorted(catalog.unshown()) == [
        ("b/\\ud800", NO_PATH),
        ("b/both", A_DIRECTORY_TOO),
        ("b/x//y", NO_PATH),
    ]
    assert catalog.meta("unshown") == 3
    assert catalog.child(ROOT + 1, "\ud800") is None
    catalog.close()


def test_a_key_with_two_versions_is_an_error(tmp_path: Path) -> None:
    entries = [entry("twice", "1"), entry("other"), entry("twice", "2")]
    with pytest.raises(ManifestError, match="names two versions of 'twice' in b: 1 and 2"):
        compiled(tmp_path, entries)


def test_sizes_add_up_to_what_can_be_kept(tmp_path: Path) -> None:
    catalog = compiled(tmp_path, [entry(key, size=INTEGER_MAX) for key in "ab"])
    assert catalog.meta("bytes") == INTEGER_MAX
    catalog.close()


def test_a_catalog_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Entry]:
        for number in range(10_000):
            yield entry(f"{number}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_entries(interrupted(), tmp_path / "catalog.sqlite", quiet)
    assert list(tmp_path.iterdir()) == []


def test_compiling_can_be_given_up_while_it_sorts(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    told: list[int] = []

    def enough(lines: int) -> None:
        told.append(lines)
        if told.count(20_000):
            raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "OPCODES_BETWEEN_LOOKS", 1000)
        patch.setattr(compiling, "BATCH_ROWS", 30_000)
        with pytest.raises(Enough):
            compile_entries(
                (entry(f"{i}") for i in range(20_000)), tmp_path / "catalog.sqlite", enough
            )
    assert list(tmp_path.iterdir()) == []


def test_what_s3_told_is_remembered(tmp_path: Path) -> None:
    entries = [entry("pinned", "1", size=None), entry("loose", None, size=None)]
    catalog = compiled(tmp_path, entries)
    rows = {row.name: row for row in walk(catalog)}
    infos = {
        name: ObjectInfo(name, 7, "etag", 10**18, headers=ObjectHeaders({"mode": "33188"}))
        for name in ("b/pinned", "b/loose")
    }
    catalog.learn((rows[name].number, infos[name], name == "b/pinned") for name in infos)
    known = {row.name: catalog.info_of(row) for row in walk(catalog) if row.kind == FILE}
    assert known == infos
    catalog.close()
    # What another version can take the place of is asked anew by the next mount.
    again = Catalog(tmp_path / "catalog.sqlite")
    known = {row.name: again.info_of(row) for row in walk(again) if row.kind == FILE}
    assert known == {"b/pinned": infos["b/pinned"], "b/loose": None}
    again.close()


def test_filling_while_it_is_used(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite")
    (bucket,) = catalog.add(ROOT, [Listed("b", IMPLIED)])
    a, d = catalog.add(bucket, [Listed("a", FILE, "1", 1, "e", 5), Listed("d", IMPLIED)])
    assert not catalog.is_listed(bucket)
    # The same again keeps the numbers; a file becomes a directory, never the other way round.
    again = catalog.add(bucket, [Listed("a", FILE, "1", 1, "e", 5), Listed("d", FILE, "9", 9)])
    assert again == [a, d]
    assert catalog.add(bucket, [Listed("d", MARKED, "2", 0)]) == [d]
    assert catalog.add(bucket, [Listed("a", IMPLIED)]) == [a]
    catalog.set_listed([bucket])
    assert catalog.is_listed(bucket)
    rows = catalog.page(bucket, "", 10)
    assert [(row.name, row.kind, row.version_id) for row in rows] == [
        ("a", IMPLIED, None),
        ("d", MARKED, "2"),
    ]
    assert catalog.name_at(bucket, 1) == "d"
    assert catalog.name_at(bucket, 2) == ""
    catalog.close()


def test_a_damaged_catalog_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(LocalDiskError):
        Catalog(path)
