from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import UsageError
from s3mount.manifest import scope
from s3mount.manifest.formats.reading import read_entries, scopes_of
from s3mount.manifest.formats.writing import OUTPUT_FORMATS, ManifestWriter, OutputFormat
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scope, Scopes
from s3mount.manifest.selecting import select, shared_beginnings

WHOLE = Scope("b", "data/", 1_790_000_000 * 10**9, is_whole=True)


def write(path: Path, output_format: OutputFormat, keys: list[str]) -> Path:
    with path.open("wb") as file:
        writer = ManifestWriter(file, output_format, WHOLE)
        for key in keys:
            writer.write([Entry("b", key, "v")])
        writer.finish()
    return path


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.integers(0, 10**12))
def test_what_is_written_is_read_again(prefix: str, is_whole: bool, count: int) -> None:
    told = Scope("b", prefix, 1_790_000_000_123_000_000, is_whole, count)
    assert scope.parse(str(told)) == told


@pytest.mark.parametrize(
    "text", ["", "all", "all s3://b 2026-01-01 1", "all s3:///p x 1", "a b c d"]
)
def test_what_is_none_is_none(text: str) -> None:
    assert scope.parse(text) is None


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_manifests_tell_what_they_list_where_they_can(
    output_format: OutputFormat, count: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "m", output_format, [f"data/{n}" for n in range(count)])
    if count:
        assert len(list(read_entries(path, bucket="b"))) == count
        found = scopes_of(path, bucket="b").of("b")
        expected = Scope("b", "data/", WHOLE.at_ns, True, count)
        assert found == (expected if output_format in ("csv", "parquet") else None)


def test_a_plain_reader_of_csv_finds_every_column_where_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "csv", ["data/1", "data/2"])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["bucket"], row["key"], row["version_id"]) for row in rows] == [
        ("b", "data/1", "v"),
        ("b", "data/2", "v"),
    ]


def test_a_manifest_that_was_cut_or_added_to_lists_nothing_in_particular(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.csv", "csv", [f"data/{n}" for n in range(4)]).read_text()
    lines = whole.splitlines(keepends=True)
    other = tmp_path / "other.csv"
    for changed in (lines[:2] + lines[3:], [*lines, "b,data/9,v,,,,,,\n"]):
        other.write_text("".join(changed))
        scopes = scopes_of(other)
        assert scopes.is_changed
        assert scopes.of("b") is None
        with pytest.raises(UsageError, match="was changed since it was written"):
            select("m", "b", scopes, "data/", None, deletes=True)
    other.write_text("".join(lines[:-1]))
    assert scopes_of(other).of("b") is None


def test_lines_that_lie_elsewhere_are_no_part_of_it() -> None:
    scopes = Scopes([Scope("b", "data/", 0, True, 1)], 1)
    assert select("m", "b", scopes, "logs/1", None, deletes=False).prefix == "logs/1"
    with pytest.raises(UsageError, match="--prefix"):
        select("m", "b", scopes, "logs/1", None, deletes=True)


def test_versions_are_listed_below_what_all_keys_begin_with() -> None:
    def found(*names: str) -> dict[str, str]:
        return shared_beginnings(Entry("b", name, "v") for name in names)

    assert found("p/b/c", "p/a", "p/bd") == {"b": "p/"}
    assert found("p/a") == {"b": "p/a"}
    assert found("p/ab2", "p/ab1") == {"b": "p/ab"}
    assert found("a", "b/c") == {"b": ""}
    assert shared_beginnings([]) == {}
