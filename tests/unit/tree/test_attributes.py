"""Attributes as several tools store them, and as we do."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.clock import TIME_NS_MAX, TIME_NS_MIN
from s3mount.refs import Attributes, ObjectHeaders
from s3mount.tree import attributes as codec

DEFAULT = Attributes(stat.S_IFREG | 0o644, 10, 20, 30, 30, 30)
FOLDER = Attributes(stat.S_IFDIR | 0o755, 10, 20, 30, 30, 30)


def decoded(default: Attributes = DEFAULT, **metadata: str) -> Attributes:
    named = {name.replace("_", "-"): value for name, value in metadata.items()}
    return codec.decode(ObjectHeaders(metadata=named), default)


def test_nothing_stored_is_the_default() -> None:
    assert decoded() == DEFAULT


def test_s3fs() -> None:
    found = decoded(mode="33184", uid="1000", gid="100", mtime="1500000000", ctime="1500000001.25")
    assert (found.mode, found.uid, found.gid) == (0o100640, 1000, 100)
    assert (found.mtime_ns, found.ctime_ns) == (1_500_000_000 * 10**9, 1_500_000_001_250_000_000)


def test_rclone() -> None:
    assert decoded(mtime="1500000000.123456789").mtime_ns == 1_500_000_000_123_456_789


def test_aws_datasync() -> None:
    found = decoded(
        file_permissions="0100750",
        file_owner="7",
        file_group="8",
        file_mtime="1500000000123456789ns",
    )
    assert (found.mode, found.uid, found.gid) == (0o100750, 7, 8)
    assert found.mtime_ns == 1_500_000_000_123_456_789


@pytest.mark.parametrize(
    "metadata",
    [
        {"mode": "rw-r--r--"},
        {"mode": "-1"},
        {"mode": "9" * 30},
        {"uid": "root"},
        {"uid": "-5"},
        {"uid": "9" * 5000},
        {"gid": "\u00b2"},
        {"rdev": "9" * 5000},
        {"xattr": "[" * 1900},
        {"xattr": "%5B" * 600},
        {"mtime": "\u00b2"},
        {"gid": "99999999999"},
        {"mtime": "yesterday"},
        {"mtime": "1e9"},
        {"mtime": "1e300"},
        {"mtime": "nan"},
        {"mtime": "inf"},
        {"mtime": "9" * 5000},
        {"xattr": "%7Bnot json"},
        {"xattr": "[1,2]"},
        {"file-permissions": "rwx"},
    ],
)
def test_what_cannot_be_read_is_the_default(metadata: dict[str, str]) -> None:
    assert codec.decode(ObjectHeaders(metadata=metadata), DEFAULT) == DEFAULT


def test_a_stored_type_overrules_but_a_folder_stays_one() -> None:
    link = str(stat.S_IFLNK | 0o777)
    assert stat.S_ISLNK(decoded(mode=link).mode)
    assert stat.S_ISDIR(decoded(FOLDER, mode=link).mode)
    assert stat.S_ISREG(decoded(mode=str(stat.S_IFDIR | 0o700)).mode)
    assert stat.S_ISFIFO(decoded(mode=str(stat.S_IFIFO | 0o600)).mode)


def test_links_of_goofys() -> None:
    headers = ObjectHeaders(metadata={"--symlink-target": "a%20b"})
    assert stat.S_ISLNK(codec.decode(headers, DEFAULT).mode)
    assert codec.symlink_target_of(headers) == b"a b"
    assert codec.symlink_target_of(ObjectHeaders()) is None


def test_foreign_metadata_and_headers_survive() -> None:
    known = ObjectHeaders(
        metadata={"author": "ann", "mode": "1"}, content_type="x/y", cache_control="no-cache"
    )
    encoded = codec.encode(DEFAULT, known, content_type="text/plain")
    assert encoded.metadata["author"] == "ann"
    assert encoded.metadata["mode"] == str(DEFAULT.mode)
    assert (encoded.content_type, encoded.cache_control) == ("x/y", "no-cache")


def test_a_folders_marker_says_so() -> None:
    encoded = codec.encode(FOLDER, None)
    assert encoded.content_type == "application/x-directory"
    assert codec.are_stored(encoded)
    assert not codec.are_stored(ObjectHeaders(metadata={"author": "ann"}))


def test_an_upload_begun_while_writing_carries_its_ctime_and_is_as_old_as_last_modified() -> None:
    begun = Attributes(0o100644, 1, 2, 111, 222, 333)
    encoded = codec.encode(begun, None, with_times=False)
    assert "mtime" not in encoded.metadata
    assert codec.written_at_ns(encoded) == 222
    found = codec.decode(encoded, DEFAULT)
    assert (found.mtime_ns, found.ctime_ns) == (DEFAULT.mtime_ns, DEFAULT.mtime_ns)
    assert codec.written_at_ns(ObjectHeaders()) is None


@pytest.mark.parametrize("text", ["99999999999999999999", "253402300799.5", f"{'9' * 40}ns"])
def test_a_time_too_far_away_is_the_nearest_that_can_be_kept(text: str) -> None:
    assert decoded(mtime=text).mtime_ns == TIME_NS_MAX
    assert decoded(mtime=f"-{text}").mtime_ns == TIME_NS_MIN


times = st.integers(TIME_NS_MIN, TIME_NS_MAX)


@given(
    st.builds(
        Attributes,
        mode=st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits),
        uid=st.integers(0, 2**32 - 1),
        gid=st.integers(0, 2**32 - 1),
        mtime_ns=times,
        ctime_ns=times,
        atime_ns=times,
        rdev=st.integers(0, 2**31),
        xattrs=st.dictionaries(
            st.text(min_size=1, max_size=9).map(lambda name: f"user.{name}"),
            st.binary(max_size=20),
            max_size=3,
        ),
    )
)
def test_what_is_encoded_is_decoded(attributes: Attributes) -> None:
    headers = codec.encode(attributes, None)
    assert codec.decode(headers, DEFAULT) == attributes
    assert all(value.isascii() and value.isprintable() for value in headers.metadata.values())


@pytest.mark.parametrize("taken", [0, 1900, 1990, 2010, 2040, 2048])
def test_foreign_metadata_go_first_where_there_is_no_room_for_all(taken: int) -> None:
    known = ObjectHeaders(metadata={"n": "x" * (taken - 1)} if taken else {})
    now_ns = 1_700_000_000_123_456_789
    attributes = Attributes(stat.S_IFREG | 0o640, 1001, 1002, now_ns, now_ns, now_ns)
    metadata = codec.encode(attributes, known).metadata
    assert codec.metadata_bytes(metadata) <= 2048
    assert dict(metadata) | dict(known.metadata) == metadata
    left_out = {"mode", "uid", "gid", "mtime", "ctime", "atime"} - metadata.keys()
    if taken <= 1900:
        assert not left_out
    if taken == 1990:
        assert left_out == {"atime", "ctime"}
        assert codec.decode(ObjectHeaders(metadata=metadata), DEFAULT).mode == attributes.mode
