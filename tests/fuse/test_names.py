"""Names: whatever Linux allows and S3 can keep comes back as it was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuse.outcomes import DONE, outcome
from tests.fuse.places import Place

pytestmark = pytest.mark.each_server

ODD_NAMES = [
    " ",
    " leading and trailing ",
    "new\nline",
    "tab\tand\rreturn",
    "100%",
    "%2F",
    "%20 %",
    "a+b",
    "what?",
    "a?versionId=x",
    "#hash",
    "back\\slash",
    "quote'\"quote",
    "<&>;",
    "*[a-z]?{x,y}",
    "$HOME`id`",
    "~",
    "-rf",
    "--help",
    "trailing dot.",
    "...",
    ".hidden",
    ". .",
    "CON",
    "a:b",
    "a=b,c",
    "@",
    "!",
    "(x)",
    "caf\u00e9",
    "cafe\u0301",
    "\u00fcber \u65e5\u672c\u8a9e",
    "\U0001f680 emoji",
    "\u202eright to left",
    "\u200b",
    "\ufeffbom",
    "\x01\x7f",
    "x" * 255,
    "\u00fc" * 127,
    "\U0001f680" * 63,
]


def test_files_with_odd_names(place: Place) -> None:
    """Written, listed, read, renamed and in the bucket under exactly their names."""
    folder = place.path / "names"
    folder.mkdir()
    for name in ODD_NAMES:
        (folder / name).write_bytes(name.encode())
    assert sorted(os.listdir(folder)) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert (folder / name).read_bytes() == name.encode()
    assert place.keys_in_bucket() == {"names/", *(f"names/{name}" for name in ODD_NAMES)}
    for name in ODD_NAMES:
        assert place.contents.read(f"{place.prefix}names/{name}") == name.encode()


def test_folders_with_odd_names(place: Place) -> None:
    """The same for folders, with a file in each; then all of it is removed again."""
    for name in ODD_NAMES:
        (place.path / name).mkdir()
        (place.path / name / "file").write_bytes(name.encode())
    wanted = {f"{name}/" for name in ODD_NAMES} | {f"{name}/file" for name in ODD_NAMES}
    assert place.keys_in_bucket() == wanted
    for name in ODD_NAMES:
        (place.path / name / "file").unlink()
        (place.path / name).rmdir()
    assert os.listdir(place.path) == []
    assert place.keys_in_bucket() == set()


def test_renaming_between_odd_names(place: Place) -> None:
    """Server-side copies name their source in a header: every name survives that too."""
    for name in ODD_NAMES:
        (place.path / name).write_bytes(name.encode())
    place.mount.wait()
    (place.path / "to").mkdir()
    for name, new in zip(ODD_NAMES, reversed(ODD_NAMES), strict=True):
        (place.path / name).rename(place.path / "to" / new)
    assert place.keys_in_bucket() == {"to/", *(f"to/{name}" for name in ODD_NAMES)}
    for name, new in zip(ODD_NAMES, reversed(ODD_NAMES), strict=True):
        assert (place.path / "to" / new).read_bytes() == name.encode()
        assert place.contents.read(f"{place.prefix}to/{new}") == name.encode()


def test_links_with_odd_targets(place: Place) -> None:
    """A link's target is any text, whether or not it is there."""
    for number, name in enumerate(ODD_NAMES):
        (place.path / str(number)).symlink_to(name)
    place.mount.wait()
    for number, name in enumerate(ODD_NAMES):
        assert os.readlink(place.path / str(number)) == name
        assert place.contents.read(f"{place.prefix}{number}") == name.encode()


def test_names_that_differ_little(place: Place) -> None:
    """Case, accents and their forms, trailing blanks: each is a file of its own."""
    names = ["name", "Name", "NAME", "name ", " name", "name.", "caf\u00e9", "cafe\u0301", "cafe"]
    for name in names:
        (place.path / name).write_bytes(name.encode())
    assert sorted(os.listdir(place.path)) == sorted(names)
    assert place.keys_in_bucket() == set(names)


def test_neighbours_of_a_folder_in_key_order(own_place: Place) -> None:
    """Names that sort between ``a`` and ``a/`` in the bucket, and just behind, seen by a new mount."""
    names = ["a", "a ", "a!", "a-", "a.", "a.b", "a0", "aa", "b"]
    for name in names:
        if name in ("a", "a-", "aa"):
            (own_place.path / name).mkdir()
            (own_place.path / name / "inner").write_bytes(name.encode())
        else:
            (own_place.path / name).write_bytes(name.encode())
    own_place.mount.wait()
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    assert sorted(os.listdir(own_place.path)) == sorted(names)
    for name in names:
        path = own_place.path / name
        assert (path / "inner" if path.is_dir() else path).read_bytes() == name.encode()


@pytest.mark.parametrize("length", [255, 256])
def test_longest_name(place: Place, length: int) -> None:
    """255 bytes are a name, 256 are too many, also when they are fewer characters."""
    wanted = DONE if length == 255 else "ENAMETOOLONG"
    plain = "n" * length
    accented = "\u00fc" * (length // 2) + "n" * (length % 2)
    assert outcome(lambda: (place.path / plain).write_bytes(b"x")) == wanted
    assert outcome(lambda: (place.path / accented).mkdir()) == wanted
    found = {plain, f"{accented}/"} if length == 255 else set()
    assert place.keys_in_bucket() == found


def _folder_with_key_of(top: Path, prefix_bytes: int, key_bytes: int) -> Path:
    """Make folders until their key, slash included, has ``key_bytes`` bytes."""
    left = key_bytes - prefix_bytes
    folder = top
    while left > 0:
        step = min(200, left) if left != 201 else 100
        folder = folder / ("d" * (step - 1))
        folder.mkdir()
        left -= step
    return folder


@pytest.mark.needs_s3
def test_longest_key(place: Place) -> None:
    """S3's keys have up to 1,024 bytes; what would be longer is refused where it is made."""
    folder = _folder_with_key_of(place.path, len(place.prefix), 924)
    (folder / ("f" * 100)).write_bytes(b"just fits")
    (folder / ("d" * 99)).mkdir()
    long = folder / ("f" * 101)
    assert outcome(lambda: long.write_bytes(b"x")) == "ENAMETOOLONG"
    assert outcome(lambda: (folder / ("d" * 100)).mkdir()) == "ENAMETOOLONG"
    assert outcome(lambda: os.symlink("x", long)) == "ENAMETOOLONG"
    assert outcome(lambda: (folder / ("f" * 100)).rename(long)) == "ENAMETOOLONG"
    assert outcome(lambda: os.mknod(long)) == "ENAMETOOLONG"
    assert sorted(os.listdir(folder)) == ["d" * 99, "f" * 100]
    place.mount.wait()
    keys = {key for key in place.contents.listing(place.prefix) if len(key) > 950}
    assert {len(key) for key in keys} == {1024}
    assert (folder / ("f" * 100)).read_bytes() == b"just fits"


@pytest.mark.needs_s3
def test_folder_rename_that_makes_a_key_too_long(place: Place) -> None:
    """Refused as a whole, before anything has moved."""
    folder = _folder_with_key_of(place.path, len(place.prefix), 924)
    (folder / ("f" * 100)).write_bytes(b"just fits")
    top = place.path / os.listdir(place.path)[0]
    longer = top.with_name(top.name + "x")
    assert outcome(lambda: top.rename(longer)) == "ENAMETOOLONG"
    assert os.listdir(place.path) == [top.name]
    assert (folder / ("f" * 100)).read_bytes() == b"just fits"
