"""Catalogs are found again, made anew when they must be, and removed when there are too many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from s3mount.errors import ManifestError
from s3mount.manifest import library as module
from s3mount.manifest.catalog import FILE, IMPLIED, ROOT, Listed
from s3mount.manifest.library import Library


def quiet(doing: str) -> None:
    """Nobody is told."""


def write(path: Path, lines: int = 3) -> Path:
    rows = "".join(f"b,key{number},v{number},1\n" for number in range(lines))
    path.write_text("bucket,key,version_id,size\n" + rows)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "catalogs", 1 << 30)


def names(library: Library) -> set[str]:
    return {path.name for path in library._folder.glob("*.sqlite")}


def test_compiled_once(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(tmp_path / "m.csv")
    digest = library.digest_of(manifest, quiet)
    with library.of_manifest(manifest, digest, None, quiet) as held:
        assert held.catalog.meta("files") == 3
    monkeypatch.setattr(module, "compile_entries", pytest.fail)
    with library.of_manifest(manifest, digest, None, quiet) as held:
        assert held.catalog.meta("files") == 3
    # The same bytes elsewhere are the same manifest.
    other = write(tmp_path / "other.csv")
    assert library.digest_of(other, quiet) == digest


def test_the_bucket_that_was_given_is_part_of_what_it_is(library: Library, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("a,1\n")
    digest = library.digest_of(manifest, quiet)
    for bucket in ("one", "two"):
        with library.of_manifest(manifest, digest, bucket, quiet) as held:
            assert [row.name for row in held.catalog.page(ROOT, "", 5)] == [bucket]


def test_a_manifest_is_not_read_again_to_be_known(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    manifest = write(tmp_path / "m.csv")
    digest = library.digest_of(manifest, quiet)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", pytest.fail)
        assert library.digest_of(manifest, quiet) == digest
    # Of the same size and, as far as mtime goes, the same age: its ctime gives it away.
    seen = manifest.stat()
    manifest.write_text(manifest.read_text().replace("key1", "key7"))
    os.utime(manifest, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert library.digest_of(manifest, quiet) != digest


def test_what_may_still_change_is_read_again(library: Library, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv")
    library.digest_of(manifest, quiet)
    with library._known() as database:
        assert database.execute("SELECT count(*) FROM known").fetchone() == (0,)
    database.close()


def test_a_manifest_that_is_not_there(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="missing"):
        library.digest_of(tmp_path / "missing.csv", quiet)


def test_an_interrupted_compilation_starts_anew(library: Library, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv")
    digest = library.digest_of(manifest, quiet)
    with library.of_manifest(manifest, digest, None, quiet) as held:
        path = held.catalog.path
    module.remove(path)
    # What a killed compiler leaves: half a file under another name.
    for name in (f"{path.name}.12345.new", f"{path.name}.12345.new-wal"):
        path.with_name(name).write_bytes(b"half")
    with library.of_manifest(manifest, digest, None, quiet) as held:
        assert held.catalog.meta("files") == 3
    assert not list(path.parent.glob("*.new*"))


def test_a_damaged_catalog_is_made_anew(library: Library, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv")
    digest = library.digest_of(manifest, quiet)
    with library.of_manifest(manifest, digest, None, quiet) as held:
        path = held.catalog.path
    path.write_bytes(b"no database" * 1000)
    with library.of_manifest(manifest, digest, None, quiet) as held:
        assert held.catalog.meta("files") == 3


def test_the_past_is_kept_when_it_is_settled(library: Library) -> None:
    at_ns, day_ns = 10**18, 86_400 * 10**9
    with library.of_past("bucket", at_ns, at_ns + day_ns, day_ns) as held:
        held.catalog.add(ROOT, [Listed("b", IMPLIED)])
    with library.of_past("bucket", at_ns, at_ns + 2 * day_ns, day_ns) as held:
        assert held.catalog.child(ROOT, "b") is not None
    with library.of_past("another", at_ns, at_ns + day_ns, day_ns) as held:
        assert held.catalog.child(ROOT, "b") is None
    assert len(names(library)) == 2


def test_a_time_just_gone_is_listed_anew_by_each_mount(library: Library) -> None:
    at_ns = 10**18
    with library.of_past("bucket", at_ns, at_ns + 5, 10) as held:
        held.catalog.add(ROOT, [Listed("b", IMPLIED)])
        with library.of_past("bucket", at_ns, at_ns + 6, 10) as other:
            assert other.catalog.child(ROOT, "b") is None
    assert names(library) == set()
    assert not list(library._folder.glob("past*"))


def test_a_past_needs_no_folder(tmp_path: Path) -> None:
    """One that cannot be used costs asking S3 again, nothing else."""
    (tmp_path / "a file").write_bytes(b"")
    library = Library(tmp_path / "a file", 1 << 30)
    for _ in range(2):
        with library.of_past("bucket", 1, 10**18, 1) as held:
            assert held.catalog.page(ROOT, "", 2) == []
            numbers = held.catalog.add(ROOT, [Listed("f", FILE), Listed("d", IMPLIED)])
            held.catalog.set_listed(numbers)
            assert [row.name for row in held.catalog.page(ROOT, "", 2)] == ["d", "f"]


def test_the_oldest_go_first_and_those_in_use_stay(tmp_path: Path) -> None:
    library = Library(tmp_path / "catalogs", 1)
    held = [library.of_past(f"{number}", 1, 1000, 10) for number in range(4)]
    for number, each in enumerate(held):
        each.catalog.add(ROOT, [Listed(f"{number}", FILE)])
        os.utime(f"{each.catalog.path}.lock", ns=(0, time.time_ns() + number * 10**9))
    held[1].close()
    held[3].close()
    library.prune()
    assert names(library) == {held[0].catalog.path.name, held[2].catalog.path.name}
    held[0].close()
    held[2].close()
    Library(tmp_path / "catalogs", 1 << 30).prune()
    assert len(names(library)) == 2
    library.prune()
    assert names(library) == set()
