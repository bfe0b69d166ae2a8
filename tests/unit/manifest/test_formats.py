from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3mount.errors import ManifestError, UsageError
from s3mount.manifest.comparing import is_same
from s3mount.manifest.external_sort import sorted_entries
from s3mount.manifest.formats import parquet
from s3mount.manifest.formats.reading import digest_of, format_of, in_order, read_entries, scopes_of
from s3mount.manifest.formats.writing import (
    OUTPUT_FORMATS,
    ManifestWriter,
    OutputFormat,
    WholeFile,
)
from s3mount.manifest.model import Entry

ODD = "a,b\"c\\:;\n\r\t\x00\x01 %+'é😀\ufeff\x85\u2028{P"
keys = st.text(st.sampled_from(ODD), min_size=1, max_size=12) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20
)
ids = st.none() | st.just("null") | st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True)
times = st.none() | st.integers(0, 4_000_000_000_000_000_000)
entries = st.builds(
    Entry,
    st.just("bucket"),
    keys,
    ids,
    st.none() | st.integers(0, 5 << 40),
    st.sampled_from(["", "d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427e-7"]),
    times,
    st.none() | st.integers(0, 0o177777),
    times,
)


def written(made: Sequence[Entry], output_format: OutputFormat) -> bytes:
    file = io.BytesIO()
    writer = ManifestWriter(file, output_format)
    for entry in made:
        writer.write([entry])
    writer.finish()
    return file.getvalue()


def read(path: Path, data: bytes | str, bucket: str | None = None) -> list[Entry]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_entries(path, bucket=bucket))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(entries, max_size=5))
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_what_is_written_is_read_again(
    tmp_path: Path, output_format: OutputFormat, made: list[Entry]
) -> None:
    data = written(made, output_format)
    assert data == written(made, output_format)
    if output_format in ("legacy", "batch"):
        made = [Entry(entry.bucket, entry.key, entry.version_id) for entry in made]
    path = tmp_path / "manifest"
    if not data:
        with pytest.raises(ManifestError, match="is empty"):
            read(path, data, "bucket")
        return
    assert read(path, data, "bucket") == made
    if output_format != "parquet":
        assert read(path, gzip.compress(data), "bucket") == made
    assert format_of(path, bucket="bucket") == output_format


def test_our_own_format_is_what_the_page_says(tmp_path: Path) -> None:
    data = written(
        [
            Entry("b", "plain", "v1", 5, "e-2", 1_790_812_800_250_000_000),
            Entry("b", 'q"u,o\nte', "null", 0, "", 1_790_812_800_000_000_000, 0o100644, 1),
            Entry("b", " blank", None),
        ],
        "csv",
    )
    assert data == (
        b"bucket,key,version_id,size,etag,last_modified,mode,mtime\n"
        b"b,plain,v1,5,e-2,2026-10-01T00:00:00.250Z,,\n"
        b'b,"q""u,o\nte",null,0,,2026-10-01T00:00:00Z,100644,1970-01-01T00:00:00.000000001Z\n'
        b'b," blank",,,,,,\n'
    )
    path = tmp_path / "manifest.csv"
    path.write_bytes(data)
    assert digest_of(path) == hashlib.sha256(data).hexdigest()
    assert not in_order(path)


def test_columns_may_stand_in_any_order_and_more_of_them(tmp_path: Path) -> None:
    text = "\ufeffSize,Version ID,Key,Owner\r\n7,v1,a,me\r\n,,b,\r\n"
    assert read(tmp_path / "m", text, "given") == [
        Entry("given", "a", "v1", 7),
        Entry("given", "b", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("index.php,e1\r\nmu/x.php,e2\r\n", [("index.php", "e1"), ("mu/x.php", "e2")]),
        ("index.php:e1\nmu/x.php:e2", [("index.php", "e1"), ("mu/x.php", "e2")]),
        ("key,version\na,v1\n", [("a", "v1")]),
        ("path:version\na:v1\n", [("a", "v1")]),
        ('"a,b","v1"\n"c:d":"v2"\n"e:v3"\n', [("a,b", "v1"), ("c:d", "v2"), ("e", "v3")]),
        ('"qu""ote",v1\n"new\nline",v2\n', [('qu"ote', "v1"), ("new\nline", "v2")]),
        ("\\a,b\\,v1\r\n\\c\\\\d\\,v2\r\n", [("a,b", "v1"), ("c\\d", "v2")]),
        ("\\two\r\nlines\\,v1\r\nnext,v2", [("two\r\nlines", "v1"), ("next", "v2")]),
        ('say "hi",v1\n"hi,v2\n"a" b,v3\n', [('say "hi"', "v1"), ('"hi', "v2"), ('"a" b', "v3")]),
        ("a:b,v1\na,b:v2\nno,\n", [("a:b", "v1"), ("a,b", "v2"), ("no", None)]),
        ("a,null\n\n\nb,v\n", [("a", "null"), ("b", "v")]),
        ("{not json,v1\n", [("{not json", "v1")]),
    ],
)
def test_the_old_two_columns_are_read_in_all_their_spellings(
    tmp_path: Path, text: str, expected: list[tuple[str, str | None]]
) -> None:
    path = tmp_path / "old.csv"
    found = read(path, text, "bucket")
    assert found == [Entry("bucket", key, version_id) for key, version_id in expected]
    assert format_of(path, bucket="bucket") == "legacy"
    with pytest.raises(ManifestError, match="--bucket"):
        list(read_entries(path))


def test_a_batch_is_told_by_its_three_fields(tmp_path: Path) -> None:
    text = 'my-bucket,a%2Cb+c%2B,v1\n"my-bucket","caf%C3%A9",""\nother,x,null\n'
    assert read(tmp_path / "batch.csv", text) == [
        Entry("my-bucket", "a,b c+", "v1"),
        Entry("my-bucket", "café", None),
        Entry("other", "x", "null"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("bucket,key,version_id\nb,k\n", "line 2 has 2 fields, not 3"),
        ("bucket,key,version_id\nb,,v\n", "line 2: the key is empty"),
        ('bucket,key,version_id\nb,"k\nk",v\nb,"k\n', "line 4: this is no CSV"),
        ("bucket,key,version_id,size\nb,k,v,7\nb,k,v,many\n", "line 3: 'many' is no size"),
        ("bucket,key,version_id,last_modified\nb,k,v,today\n", "line 2: 'today' is no time"),
        ("key,version_id,size\nk,v,1\n", "line 2: no bucket is named"),
        ("my-bucket,%ff,v\n", "line 1: the key '%ff' is not UTF-8"),
        ("my-bucket,k,v\nmy-bucket,k\n", "line 2 is not 'Bucket,Key,VersionId'"),
        (b"\xff\xfe\n", "is not UTF-8"),
        (gzip.compress(b"bucket,key,version_id\nb,k,v\n" * 100, mtime=0)[:-12], "cannot be read"),
        (b"PAR1 and no more", "cannot be read as Parquet"),
        (
            "bucket,key,version_id,size\nb,k,v,9223372036854775808\n",
            "line 2: '9223372036854775808'",
        ),
        (f"bucket,key,version_id,size\nb,k,v,{'9' * 5000}\n", "is no size"),
        (
            "bucket,key,version_id,mode\nb,k,v,77777777777777\n",
            "line 2: '77777777777777' is no mode",
        ),
        ("bucket,key,version_id,mode\nb,k,v,-644\n", "line 2: '-644' is no mode"),
        ("bucket,key,version_id,mode\nb,k,v,689\n", "line 2: '689' is no mode"),
        ('[{"Key": "k", "ETag": 5}]', "'k': 5 is no etag"),
        ('[{"Key": "k", "VersionId": {}}]', "'k': {} is no version_id"),
        ('[{"Key": "k", "Size": -1}]', "'k': -1 is no size"),
        ('[{"Key": "k", "Size": 1e30}]', "'k': 1e+30 is no size"),
        ('[{"Key": "k", "Size": true}]', "'k': True is no size"),
        ('[{"Key": "k", "LastModified": 7.5}]', "'k': 7.5 is no last_modified"),
        ('[{"Key": "a\\ud800"}]', "cannot be written in UTF-8"),
        ('[{"Key": "k"}, {"Key": ""}]', "the key is empty"),
        ("bucket\tkey\tversion_id\nb\tk\tv\n", "parts its columns by tabs"),
        ("key;version_id\nk;v\n", "parts its columns by semicolons"),
        (b"(\xb5/\xfd....", "is packed with zstd: unpack it"),
        (b"PK\x03\x04....", "is packed with zip"),
        ("\ufeffkey,version_id\n".encode("utf-16"), "is not UTF-8 but UTF-16"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "manifest.csv"
    with pytest.raises(ManifestError) as caught:
        read(path, text, "bucket" if text[:1] == "[" else None)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_that_was_cut_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"list\.json is no JSON: .*line 1"):
        read(tmp_path / "list.json", '{"Versions": [{"Key": "a"', "bucket")


def test_json_may_be_packed_and_numbers_may_be_texts_or_floats(tmp_path: Path) -> None:
    told = b'{"Versions": [{"Key": "a", "Size": "5"}, {"Key": "b", "Size": 6.0}]}'
    found = read(tmp_path / "list.json.gz", gzip.compress(told), "bucket")
    assert found == [Entry("bucket", "a", None, 5), Entry("bucket", "b", None, 6)]


def test_parquet_as_data_frames_write_it(tmp_path: Path) -> None:
    """Sizes are floats where some are missing, times are texts; what means nothing is named by its row."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "bucket": ["b", "b"],
        "key": ["k", "l"],
        "size": [5.0, float("nan")],
        "last_modified": ["1970-01-01T00:00:01Z", None],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet")
    assert list(read_entries(tmp_path / "m.parquet")) == [
        Entry("b", "k", None, 5, last_modified_ns=10**9),
        Entry("b", "l", None),
    ]
    parquet.write_table(arrow.table(columns | {"size": [5, -1]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="row 2: -1 is no size"):
        list(read_entries(tmp_path / "m.parquet"))


def test_a_line_without_two_fields_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 2: no 'key,version'"):
        read(tmp_path / "old", "a,b\nneither\n", "bucket")
    with pytest.raises(ManifestError, match="cannot be read"):
        list(read_entries(tmp_path / "not there"))


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written([Entry("b", "k", "v")], "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 's3mount\[parquet\]'"):
        read(tmp_path / "m.parquet", data)
    with pytest.raises(UsageError, match="pyarrow"):
        ManifestWriter(io.BytesIO(), "parquet")


def test_two_columns_cannot_hold_two_buckets() -> None:
    with pytest.raises(ManifestError, match="several buckets"):
        written([Entry("a", "k", "v"), Entry("b", "k", "v")], "legacy")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyError), WholeFile(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    with WholeFile(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ManifestError, match="cannot be written"), WholeFile(tmp_path / "no" / "x"):
        raise AssertionError("never entered")


class Reports:
    """An inventory as S3 lays it out, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[dict[str, object]] = []
        self.manifest = folder / "report" / "2026-10-01T01-00Z" / "manifest.json"
        (folder / "report" / "data").mkdir(parents=True)
        self.manifest.parent.mkdir()

    def add(self, name: str, data: bytes) -> Path:
        place = self.folder / "report" / "data" / name
        place.write_bytes(data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        key = f"from/my-bucket/report/data/{name}"
        self.files.append({"key": key, "size": len(data), "MD5checksum": md5})
        return place

    def write(self, file_format: str, schema: str) -> Path:
        about = {
            "sourceBucket": "my-bucket",
            "destinationBucket": "arn:aws:s3:::reports",
            "version": "2016-11-30",
            "creationTimestamp": "1790816400000",
            "fileFormat": file_format,
            "fileSchema": schema,
            "files": self.files,
        }
        data = json.dumps(about).encode()
        self.manifest.write_bytes(data)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.manifest.with_name("manifest.checksum").write_text(md5 + "\n")
        return self.manifest


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path)


SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, Owner"
ROWS = [
    ("a b+,", "v2", "true", "false", "5", "2026-10-01T00:00:00.000Z", "e2"),
    ("a b+,", "v1", "false", "false", "4", "2026-09-01T00:00:00.000Z", "e1"),
    ("gone", "v4", "true", "true", "", "2026-10-01T00:00:00.000Z", ""),
    ("gone", "v3", "false", "false", "4", "2026-09-01T00:00:00.000Z", "e3"),
    ("né\nw", "", "true", "false", "0", "2026-10-01T00:00:00.000Z", "e5"),
]
CURRENT = [
    Entry("my-bucket", "a b+,", "v2", 5, "e2", 1_790_812_800_000_000_000),
    Entry("my-bucket", "né\nw", "null", 0, "e5", 1_790_812_800_000_000_000),
]


def packed(rows: Sequence[tuple[str, ...]]) -> bytes:
    text = "".join(
        ",".join(
            f'"{field}"' for field in ("my-bucket", quote_plus(row[0], safe="/"), *row[1:], "me")
        )
        + "\n"
        for row in rows
    )
    return gzip.compress(text.encode())


def test_an_inventory_of_all_versions_tells_the_current_ones(reports: Reports) -> None:
    reports.add("1.csv.gz", packed(ROWS[:2]))
    reports.add("2.csv.gz", packed(ROWS[2:]))
    path = reports.write("CSV", SCHEMA)
    assert format_of(path) == "inventory"
    assert list(read_entries(path)) == CURRENT


def test_an_inventory_of_current_versions_names_no_versions(reports: Reports) -> None:
    reports.add("1.csv.gz", gzip.compress(b'"my-bucket","a%2Fb","7"\n"my-bucket","c","8"\n'))
    path = reports.write("CSV", "Bucket, Key, Size")
    assert list(read_entries(path)) == [
        Entry("my-bucket", "a/b", None, 7),
        Entry("my-bucket", "c", None, 8),
    ]


def test_an_inventory_in_parquet_is_read_by_its_columns(reports: Reports) -> None:
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(arrow_table(), sink)
    reports.add("1.parquet", sink.getvalue())
    path = reports.write("Parquet", "message s3.inventory { required binary bucket (UTF8); }")
    assert list(read_entries(path)) == CURRENT


def test_damaged_and_missing_data_files_are_named(reports: Reports) -> None:
    place = reports.add("1.csv.gz", packed(ROWS))
    path = reports.write("CSV", SCHEMA)
    place.write_bytes(place.read_bytes() + b"\n")
    with pytest.raises(ManifestError, match=r"1\.csv\.gz is damaged: its MD5"):
        list(read_entries(path))
    place.unlink()
    with pytest.raises(ManifestError, match=r"data file .*1\.csv\.gz is neither"):
        list(read_entries(path))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
        list(read_entries(path))


def arrow_table() -> Any:
    """The rows as a table of an inventory's columns."""
    import pyarrow

    columns = list(zip(*ROWS, strict=True))
    moment = pyarrow.timestamp("ms", tz="UTC")
    return pyarrow.table(
        {
            "bucket": ["my-bucket"] * len(ROWS),
            "key": [key.encode() for key in columns[0]],
            "version_id": columns[1],
            "is_latest": [text == "true" for text in columns[2]],
            "is_delete_marker": [text == "true" for text in columns[3]],
            "size": [int(text) if text else None for text in columns[4]],
            "last_modified_date": pyarrow.array([1_790_812_800_000] * len(ROWS), type=moment),
            "e_tag": columns[6],
        }
    )


def test_an_inventory_in_orc_is_read_by_its_columns(reports: Reports) -> None:
    from pyarrow import orc

    sink = io.BytesIO()
    orc.write_table(arrow_table(), sink)
    place = reports.add("1.orc", sink.getvalue())
    path = reports.write("ORC", "struct<bucket:string,key:string>")
    assert list(read_entries(path)) == CURRENT
    assert format_of(place) == "orc"
    assert list(read_entries(place)) == CURRENT
    place.write_bytes(b"ORC and no more")
    with pytest.raises(ManifestError, match="cannot be read as ORC"):
        list(read_entries(place))


def test_a_parquet_file_of_an_inventory_alone_tells_the_current_versions(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "part.parquet"
    pyarrow.parquet.write_table(arrow_table(), path)
    assert list(read_entries(path)) == CURRENT
    assert scopes_of(path).found == ()


def test_an_inventory_with_an_unpacked_data_file_is_read(reports: Reports) -> None:
    place = reports.add("1.csv.gz", packed(ROWS))
    path = reports.write("CSV", SCHEMA)
    text = gzip.decompress(place.read_bytes())
    place.write_bytes(text)
    assert list(read_entries(path)) == CURRENT
    place.rename(place.with_suffix(""))
    assert list(read_entries(path)) == CURRENT


@pytest.mark.parametrize("columns", [3, 6])
def test_a_data_file_of_an_inventory_alone_is_refused(columns: int, tmp_path: Path) -> None:
    row = ("my-bucket", "a%2Cb", "12", "2026-10-01T00:00:00.000Z", "e1", "STANDARD")[:columns]
    line = ",".join(f'"{field}"' for field in row).encode() + b"\n"
    for data in (line, gzip.compress(line)):
        with pytest.raises(ManifestError, match=r"give the inventory's manifest\.json"):
            read(tmp_path / "data.csv.gz", data, "my-bucket")


@pytest.mark.parametrize(
    ("text", "bucket", "expected"),
    [
        ("my-bucket,a%20b\nmy-bucket,c\n", None, [("a b", None), ("c", None)]),
        ("my-bucket,a\n", "my-bucket", [("a", None)]),
        ("bucket,key\nmy-bucket,a\n", None, [("a", None)]),
        # A file that is named as its bucket: what follows is a version.
        ("my-bucket,3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrH\n", "my-bucket", None),
        ("readme,v1\nreadme,v2\n", "my-bucket", None),
    ],
)
def test_bucket_and_key_are_told_from_key_and_version(
    text: str, bucket: str | None, expected: list[tuple[str, str | None]] | None, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    if expected is None:
        path.write_text(text)
        assert format_of(path, bucket=bucket) == "legacy"
        return
    found = [(entry.key, entry.version_id) for entry in read(path, text, bucket)]
    assert found == expected


@pytest.mark.parametrize(
    "header",
    ['"key","version_id"', "Key,VersionId", '"path":"version"', "key, version", "KEY,VERSION ID"],
)
def test_headers_of_two_columns_are_no_entries(header: str, tmp_path: Path) -> None:
    assert read(tmp_path / "m", f"{header}\na,v1\n", "b") == [Entry("b", "a", "v1")]


def test_blanks_behind_commas_are_no_part_of_the_fields(tmp_path: Path) -> None:
    text = 'bucket, key, version_id, size\nb, a, v1, 3\nb, "x, y", v2, 4\n'
    assert read(tmp_path / "m", text) == [Entry("b", "a", "v1", 3), Entry("b", "x, y", "v2", 4)]
    text = "bucket,key,version_id\nb, a,v1\n"
    assert read(tmp_path / "m", text) == [Entry("b", " a", "v1")]


def test_etags_are_the_same_in_capitals(tmp_path: Path) -> None:
    digest = "d41d8cd98f00b204e9800998ecf8427e"
    text = f'bucket,key,version_id,etag\nb,k,v,"{digest.upper()}-7"\n'
    (entry,) = read(tmp_path / "m", text)
    assert entry.etag == f"{digest}-7"
    assert is_same(Entry("b", "k", None, 1, digest), Entry("b", "k", None, 1, digest.upper()))
    # A store that writes capitals knows them only so: what s3mount wrote stays as it is.
    kept = Entry("b", "k", "v", 1, digest.upper())
    assert read(tmp_path / "m", written([kept], "csv")) == [kept]


def test_rows_of_a_query_over_an_inventory_are_those_that_are_current(tmp_path: Path) -> None:
    text = (
        '"bucket","key","version_id","is_latest","is_delete_marker","size","e_tag"\n'
        '"b","a","v2","true","false","5","e2"\n"b","a","v1","false","false","4","e1"\n'
        '"b","gone","v3","true","true","",""\n'
    )
    assert read(tmp_path / "m", text) == [Entry("b", "a", "v2", 5, "e2")]


def test_what_the_aws_cli_prints_is_read(tmp_path: Path) -> None:
    versions = [
        {"Key": "a", "VersionId": "v2", "IsLatest": True, "Size": 5, "ETag": '"e2"'},
        {"Key": "a", "VersionId": "v1", "IsLatest": False, "Size": 4, "ETag": '"e1"'},
        {"Key": "é\n", "VersionId": "null", "IsLatest": True, "Size": 0, "ETag": '"e3"'},
    ]
    versions[0]["LastModified"] = "2026-10-01T00:00:00+00:00"
    expected = [
        Entry("b", "a", "v2", 5, "e2", 1_790_812_800_000_000_000),
        Entry("b", "é\n", "null", 0, "e3"),
    ]
    path = tmp_path / "m.json"
    whole = json.dumps({"Versions": versions, "DeleteMarkers": [], "Prefix": ""}, indent=4)
    assert read(path, whole, "b") == expected
    assert format_of(path, bucket="b") == "json"
    assert read(path, json.dumps(versions), "b") == expected
    assert read(path, '{"Contents": [{"Key": "a", "Size": 5}]}', "b") == [Entry("b", "a", None, 5)]
    with pytest.raises(ManifestError, match="--bucket"):
        list(read_entries(path))
    with pytest.raises(ManifestError, match="is JSON, but neither"):
        read(path, '{"a": 1}', "b")


def test_a_line_twice_counts_once_and_two_versions_are_refused() -> None:
    one, same = Entry("b", "k", "v", 1), Entry("b", "k", "v")
    assert list(sorted_entries([one, same], "m")) == [one]
    for other in (Entry("b", "k", "w"), Entry("b", "k", None)):
        with pytest.raises(ManifestError, match="names two versions of 'k'"):
            list(sorted_entries([one, other], "m"))
    with pytest.raises(ManifestError, match="names two versions"):
        list(sorted_entries([Entry("b", "k", None, 1, "e"), Entry("b", "k", None, 1, "f")], "m"))


def test_a_large_parquet_file_is_written_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 100)
    made = [Entry("b", f"{n:06d}", "v", n) for n in range(1050)]
    assert read(tmp_path / "m", written(made, "parquet")) == made
    assert in_order(tmp_path / "m")
