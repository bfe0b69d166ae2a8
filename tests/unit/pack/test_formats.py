"""The bytes of packs and indexes: what tar reads of them, what they say again, and what is refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import DiskFullError, PackError, UsageError
from s3mount.pack import index
from s3mount.pack.batch import About, Batch, Layout
from s3mount.pack.entry import INDEX_NAME, Entry, check_name, time_ns, time_text
from s3mount.pack.index import Head
from s3mount.refs import FileSlice
from s3mount.transfer.source import SourceChangedError

NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200
).filter(lambda name: not name.endswith("/") and len(name.encode()) <= 1024)
BATCHES: list[Batch] = []


@pytest.fixture(autouse=True)
def no_file_stays_open() -> Iterator[None]:
    yield
    while BATCHES:
        BATCHES.pop().close()


def new_batch(name: str = "1", layout: Layout = "pax") -> Batch:
    BATCHES.append(Batch(name, f"p/{name}.tar", layout))
    return BATCHES[-1]


MEMBERS = st.lists(
    st.tuples(
        NAMES,
        st.binary(max_size=1500),
        st.integers(0, 0o777),
        st.integers(-(10**18), 4 * 10**18),
    ),
    max_size=6,
)


def read(body: FileSlice) -> bytes:
    with open(body.path, "rb") as file:
        file.seek(body.offset)
        return file.read(body.length)


@given(MEMBERS)
def test_what_is_packed_is_what_tar_reads_where_the_index_says(
    members: list[tuple[str, bytes, int, int]],
) -> None:
    batch = new_batch()
    for name, data, mode, mtime_ns in members:
        entry = batch.add(name, data, About(mtime_ns, mode, 1000, 1001))
        assert entry.mtime_ns == mtime_ns
    batch.finish()
    whole = read(batch.body)
    assert len(whole) % 512 == 0
    for entry, (_, data, *_) in zip(batch.entries, members, strict=True):
        assert whole[entry.body : entry.body + entry.size] == data
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        found = tar.getmembers()
        assert [info.name for info in found] == [*(name for name, *_ in members), INDEX_NAME]
        for info, entry, (_, data, mode, mtime_ns) in zip(
            found, batch.entries, members, strict=False
        ):
            assert (info.offset, info.offset_data) == (entry.header, entry.body)
            assert (info.mode, info.uid, info.gid) == (mode, 1000, 1001)
            assert abs(info.mtime - mtime_ns / 1e9) < 1e-6 * max(1, abs(info.mtime))
            file = tar.extractfile(info)
            assert file is not None
            assert file.read() == data
        inside = tar.extractfile(found[-1])
        assert inside is not None
        assert index.decode(inside.read(), "inside", len(whole)).entries == batch.entries
    batch.close()


def test_gnu_tar_lists_and_extracts_a_pack_as_it_was(tmp_path: Path) -> None:
    names = ["plain", "sub/" + "long" * 60, "blank and é\nnewline"]
    batch = new_batch()
    for name in names:
        batch.add(name, name.encode(), About(1_500_000_000_123_456_789, 0o640))
    batch.finish()
    (tmp_path / "1.tar").write_bytes(read(batch.body))
    tar = ["tar", "--quoting-style=literal", "-C", str(tmp_path)]
    listed = subprocess.run(
        [*tar, "-tf", tmp_path / "1.tar"], check=True, capture_output=True, timeout=30
    )
    assert listed.stdout.decode() == "\n".join([*names, INDEX_NAME, ""])
    assert listed.stderr == b""
    subprocess.run([*tar, "-xf", tmp_path / "1.tar"], check=True, timeout=30)
    for name in names:
        about = (tmp_path / name).stat()
        assert (tmp_path / name).read_bytes() == name.encode()
        assert (about.st_mode & 0o777, about.st_mtime_ns) == (0o640, 1_500_000_000_123_456_789)


def test_the_v7_layout_is_that_of_the_batches_of_the_past() -> None:
    batch = new_batch("1700000000000", "v7")
    first = batch.add("first", b"\x01" * 8192, About(1_700_000_000_999_999_999, 0o600))
    second = batch.add("second", b"", About(0, 0o600))
    batch.finish()
    whole = read(batch.body)
    assert (first.header, first.body, second.header, second.body) == (0, 512, 8704, 9216)
    assert whole[:100] == b"first".ljust(100, b"\0")
    assert whole[100:124] == b"0000600\0" + bytes(16)
    assert whole[124:148] == b"00000020000\0" + b"14524770400\0"
    assert tarfile.TarInfo.frombuf(whole[:512], "utf-8", "strict").name == "first"
    assert whole[156:512] == bytes(356)
    assert whole[9216:] == bytes(1024)
    with pytest.raises(UsageError, match="v7 layout takes 100"):
        new_batch("2", "v7").add("x" * 101, b"", About(0))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("a/", "folder"),
        ("\udcff", "UTF-8"),
        ("é" * 513, "1026 bytes"),
        (INDEX_NAME, "own index"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_the_batch_goes_on(name: str, why: str) -> None:
    batch = new_batch()
    with pytest.raises(UsageError, match=why):
        batch.add(name, b"x", About(0))
    with pytest.raises(UsageError, match=why):
        batch.add_tombstone(name)
    batch.add("good", b"y", About(0))
    assert [entry.name for entry in batch.entries] == ["good"]


def test_a_file_that_became_shorter_leaves_nothing_of_it() -> None:
    batch = new_batch()
    batch.add("before", b"1", About(0))
    with pytest.raises(SourceChangedError):
        batch.add_file("shorter", io.BytesIO(b"ab"), 2_000_000, About(0))
    batch.add_file("after", io.BytesIO(b"abc"), 2, About(0))
    batch.finish()
    with tarfile.open(fileobj=io.BytesIO(read(batch.body))) as tar:
        assert tar.getnames() == ["before", "after", INDEX_NAME]
        file = tar.extractfile("after")
        assert file is not None
        assert file.read() == b"ab"


def test_a_disk_that_is_full_leaves_the_members_before() -> None:
    batch = new_batch()
    batch.add("before", b"1", About(0))
    real = batch._file

    class Full:
        """Takes a little, and then no more."""

        def write(self, data: bytes) -> int:
            real.write(data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    batch._file = cast(BinaryIO, Full())
    with pytest.raises(DiskFullError):
        batch.add("too much", b"2" * 100_000, About(0))
    batch.add("after", b"3", About(0))
    batch.finish()
    with tarfile.open(fileobj=io.BytesIO(read(batch.body))) as tar:
        assert tar.getnames() == ["before", "after", INDEX_NAME]


# ------------------------------------------------------------------ the index

HEAD = Head(1, "1700000000000-0a0a0a0a", "1700000000000-0a0a0a0a.tar", 10_000, "etag")
ENTRIES = [
    Entry("a", 0, 512, 3, "ab" * 32, "1.5", "0644"),
    Entry("b\n\"'é", 1024, 2560, 0, "cd" * 32, "-1", "0600", order="1600000000000"),
    Entry("gone", deleted=True),
    Entry("link", 3072, 3584, kind="link", target="a"),
]


def test_an_index_is_lines_of_json_that_others_read() -> None:
    data = index.encode(HEAD, ENTRIES)
    assert data == index.encode(HEAD, list(ENTRIES))
    assert index.decode(data, "here", 10_000) == (HEAD, ENTRIES)
    lines = gzip.decompress(data).splitlines(keepends=True)
    told = [json.loads(line) for line in lines]
    assert told[0]["s3mount_pack_index"] == 1
    assert told[1] == {
        "name": "a",
        "body": 512,
        "size": 3,
        "sha256": "ab" * 32,
        "mtime": "1.5",
        "mode": "0644",
    }
    assert told[3] == {"name": "gone", "deleted": True}
    assert told[-1] == {"entries": 4, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_index_is_never_believed(place: int, other: int) -> None:
    data = bytearray(index.encode(HEAD, ENTRIES))
    data[place % len(data)] ^= other
    try:
        found = index.decode(bytes(data), "here", 10_000)
    except PackError:
        return
    # Bits of gzip's header that say nothing of what is in it.
    assert found == (HEAD, ENTRIES)


@given(st.integers(0, 10_000))
def test_an_index_that_is_cut_off_is_not_read(length: int) -> None:
    data = index.encode(HEAD, ENTRIES)
    with pytest.raises(PackError):
        index.decode(data[: length % len(data)], "here", 10_000)


def packed(*lines: object) -> bytes:
    """An index of these lines, with a foot that fits."""
    plain = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    foot = {"entries": len(lines) - 1, "sha256": hashlib.sha256(plain).hexdigest()}
    return gzip.compress(plain + json.dumps(foot).encode() + b"\n")


GOOD = {"s3mount_pack_index": 1, "id": "1", "pack": "1.tar", "size": 1000}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([{"s3mount_pack_index": 2, "id": "1", "pack": "1.tar"}], "version 2"),
        ([GOOD | {"pack": "../1.tar"}], "own folder"),
        ([GOOD | {"id": "x"}], "no id"),
        ([GOOD, {"name": "a", "order": "-1"}], "no id"),
        ([GOOD, {"name": "a", "header": 0, "body": 512, "size": 489}], "outside"),
        ([GOOD, {"name": "a", "header": -512, "body": 0, "size": 1}], "outside"),
        ([GOOD, {"name": "a", "header": 600, "body": 512, "size": 1}], "outside"),
        ([GOOD, {"name": "a", "header": 0, "body": 512, "size": -1}], "outside"),
        ([GOOD, {"name": ""}], "no name"),
        ([GOOD, {"name": "a", "size": "x"}], "no index"),
        ([GOOD, {"name": "a" * 2_000}], "no name"),
        ([GOOD, {"name": "a" * 70_000}], "larger"),
        ([], "no index"),
    ],
)
def test_an_index_that_says_what_cannot_be_is_refused(lines: list[object], why: str) -> None:
    with pytest.raises(PackError, match=why):
        index.decode(packed(*lines), "here", 1000)


def test_an_index_that_unpacks_to_more_than_any_can_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "UNPACKED_BYTES_MAX", 3 << 20)
    with pytest.raises(PackError, match="larger"):
        index.decode(packed(GOOD, *[{"name": "a"}] * 300_000), "here", 10_000)


def test_fields_of_later_versions_are_passed_over() -> None:
    data = packed(GOOD | {"later": 1}, {"name": "a", "body": 512, "size": 1, "later": []})
    assert index.decode(data, "here", 10_000).entries == [Entry("a", 0, 512, 1)]


@given(st.integers(-(10**19), 10**19))
def test_times_survive_as_text(ns: int) -> None:
    assert time_ns(time_text(ns)) == ns


@given(st.text(max_size=30))
def test_no_name_and_no_time_breaks_what_reads_them(text: str) -> None:
    time_ns(text)
    try:
        check_name(text)
    except UsageError:
        return
    batch = new_batch()
    batch.add(text, b"", About(0))
    batch.close()
