"""Folders: listing them while they change, positions, link counts, making and removing."""

from __future__ import annotations

import ctypes
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuse.bucket_contents import wait_until
from tests.fuse.outcomes import libc
from tests.fuse.places import Place

ENTRIES = 1500


class DirEntry(ctypes.Structure):
    """``struct dirent`` of 64-bit Linux."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = (ctypes.c_char_p,)
libc.readdir.restype = ctypes.POINTER(DirEntry)
libc.readdir.argtypes = (ctypes.c_void_p,)
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = (ctypes.c_void_p,)
libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
libc.rewinddir.argtypes = (ctypes.c_void_p,)
libc.closedir.argtypes = (ctypes.c_void_p,)


class Stream:
    """A ``DIR *``: the C library's reading of a folder, with positions."""

    def __init__(self, path: Path) -> None:
        self._stream = libc.opendir(os.fsencode(path))
        assert self._stream

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        libc.closedir(self._stream)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next name; ``.`` and ``..``, which POSIX leaves to the file system, are left out."""
        while entry := libc.readdir(self._stream):
            name = os.fsdecode(entry.contents.d_name)
            if name not in (".", ".."):
                return name
        raise StopIteration

    def tell(self) -> int:
        """Where the next entry begins."""
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go to where ``tell`` was."""
        libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """Begin anew, with the entries that are there now."""
        libc.rewinddir(self._stream)


def _fill(folder: Path, count: int = ENTRIES) -> set[str]:
    names = {f"entry-{number:05}-with-a-longer-name" for number in range(count)}
    for name in names:
        (folder / name).touch()
    return names


def test_listing_is_complete(place: Place) -> None:
    """Each name once, with its type, also when read in small steps."""
    names = _fill(place.path)
    (place.path / "folder").mkdir()
    (place.path / "link").symlink_to("x")
    with Stream(place.path) as stream:
        seen = Counter(stream)
    assert seen == Counter({*names, "folder", "link"})
    with os.scandir(place.path) as entries:
        kinds = Counter(
            "folder"
            if entry.is_dir(follow_symlinks=False)
            else "link"
            if entry.is_symlink()
            else "file"
            for entry in entries
        )
    assert kinds == {"file": ENTRIES, "folder": 1, "link": 1}


def test_a_folder_lists_itself_and_the_one_above(place: Place) -> None:
    (place.path / "above" / "here").mkdir(parents=True)
    (place.path / "above" / "here" / "file").touch()
    here = libc.opendir(os.fsencode(place.path / "above" / "here"))
    try:
        found = {}
        while entry := libc.readdir(here):
            found[entry.contents.d_name] = entry.contents.d_ino
    finally:
        libc.closedir(here)
    above = place.path / "above"
    assert list(found) == [b".", b"..", b"file"]
    assert found[b"."] == (above / "here").stat().st_ino
    assert found[b".."] == above.stat().st_ino


def test_inode_numbers_agree(place: Place) -> None:
    """A listing's inode numbers are those of ``stat``."""
    _fill(place.path, 50)
    with os.scandir(place.path) as entries:
        for entry in entries:
            assert entry.inode() == os.lstat(entry.path).st_ino


def test_listing_while_names_come_and_go(place: Place) -> None:
    """Each entry that nobody touches is seen exactly once."""
    names = sorted(_fill(place.path))
    removed, added = set(names[::3]), set()
    with Stream(place.path) as stream:
        seen: Counter[str] = Counter()
        for step, name in enumerate(stream):
            seen[name] += 1
            if step % 3 == 0 and step // 3 < len(names[::3]):
                (place.path / names[step // 3 * 3]).unlink(missing_ok=True)
            if step % 10 == 0:
                new = f"added-{step}"
                (place.path / new).touch()
                added.add(new)
    untouched = set(names) - removed
    assert {name: seen[name] for name in untouched if seen[name] != 1} == {}
    assert {name for name, count in seen.items() if count > 1} == set()
    assert set(seen) <= {*names, *added}


def test_listing_while_all_is_removed(place: Place) -> None:
    """``rm -r`` reads and removes in turns; nothing is skipped."""
    names = _fill(place.path)
    seen = set()
    with Stream(place.path) as stream:
        for name in stream:
            seen.add(name)
            (place.path / name).unlink()
    assert seen == names
    assert os.listdir(place.path) == []
    assert place.keys_in_bucket() == set()


def test_listing_while_entries_are_renamed(place: Place) -> None:
    """What is not renamed is seen once, what is renamed at most once under each name."""
    names = sorted(_fill(place.path, 600))
    with Stream(place.path) as stream:
        seen: Counter[str] = Counter()
        for step, name in enumerate(stream):
            seen[name] += 1
            if step < 300:
                (place.path / names[2 * step]).rename(place.path / f"renamed-{step}")
    assert {name: seen[name] for name in names[1::2] if seen[name] != 1} == {}
    assert not [name for name, count in seen.items() if count > 1]


def test_positions(place: Place) -> None:
    """``seekdir`` to any ``telldir`` continues with the same entries, also backwards."""
    _fill(place.path, 700)
    with Stream(place.path) as stream:
        positions, names = [], []
        while True:
            positions.append(stream.tell())
            name = next(stream, None)
            if name is None:
                break
            names.append(name)
        for index in (650, 3, 0, 350, 699, 1):
            stream.seek(positions[index])
            assert [next(stream) for _ in range(min(5, len(names) - index))] == (
                names[index : index + 5]
            )
        stream.seek(positions[-1])
        assert next(stream, None) is None


def test_rewinding_shows_the_present(place: Place) -> None:
    """After ``rewinddir`` the folder is as it is then."""
    (place.path / "old").touch()
    with Stream(place.path) as stream:
        assert set(stream) == {"old"}
        (place.path / "old").unlink()
        (place.path / "new").touch()
        stream.rewind()
        assert set(stream) == {"new"}


def test_two_listings_at_once(place: Place) -> None:
    """Each stream has its own position."""
    _fill(place.path, 300)
    with Stream(place.path) as one, Stream(place.path) as two:
        first = [next(one) for _ in range(100)]
        assert [next(two) for _ in range(100)] == first
        assert list(one) == list(two)


def test_link_counts_are_no_lie(place: Place) -> None:
    """A folder's count is two and one for each folder in it, or 1 where nobody counts; a file's is 1."""
    counted = place.path / "counted"
    counted.mkdir()

    def count() -> int:
        return counted.stat().st_nlink

    assert count() in (1, 2)
    for number in range(3):
        (counted / str(number)).mkdir()
    (counted / "file").touch()
    assert count() in (1, 5)
    (counted / "0").rmdir()
    (counted / "1").rename(place.path / "elsewhere")
    assert count() in (1, 3)
    assert (counted / "file").stat().st_nlink == 1


def test_new_folder(place: Place) -> None:
    """Its marker is in the bucket with its mode; removed, it is gone."""
    (place.path / "a/b").mkdir(parents=True)
    (place.path / "a").chmod(0o750)
    assert place.keys_in_bucket() == {"a/", "a/b/"}
    mode = int(place.contents.metadata(f"{place.prefix}a/")["mode"])
    assert mode == stat.S_IFDIR | 0o750
    (place.path / "a/b").rmdir()
    assert place.keys_in_bucket() == {"a/"}
    (place.path / "a").rmdir()
    assert place.keys_in_bucket() == set()


def test_folder_stays_when_its_last_file_goes(place: Place) -> None:
    """Also one that only others' keys implied: who empties a folder has not removed it."""
    place.contents.put(f"{place.prefix}implied/only", b"x")
    wait_until((place.path / "implied/only").exists, "the file appears")
    (place.path / "implied/only").unlink()
    assert os.listdir(place.path / "implied") == []
    place.mount.wait()
    assert os.listdir(place.path) == ["implied"]
    (place.path / "implied/again").write_bytes(b"again")
    assert {key for key in place.keys_in_bucket() if not key.endswith("/")} == {"implied/again"}
    (place.path / "implied/again").unlink()
    (place.path / "implied").rmdir()
    assert place.keys_in_bucket() == set()


def test_removed_working_folder(place: Place) -> None:
    """A folder that is open and gone is empty, and nothing can be made in it."""
    folder = place.path / "folder"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        folder.rmdir()
        assert os.listdir(handle) == []
        assert os.fstat(handle).st_nlink == 0
        for attempt in (os.mkdir, os.mknod):
            try:
                attempt("new", dir_fd=handle)
            except FileNotFoundError:
                continue
            raise AssertionError(f"{attempt.__name__} in a folder that is gone")
    finally:
        os.close(handle)
    assert place.keys_in_bucket() == set()


def test_relative_to_a_moved_folder(place: Place) -> None:
    """An open folder is followed over its rename."""
    (place.path / "before").mkdir()
    handle = os.open(place.path / "before", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (place.path / "before").rename(place.path / "after")
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        assert os.listdir(handle) == ["file"]
        os.fsync(handle)
    finally:
        os.close(handle)
    assert place.keys_in_bucket() == {"after/", "after/file"}


def test_deep_folders(place: Place) -> None:
    """Sixty levels down and up again."""
    deep = place.path.joinpath(*["level"] * 60)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    key = "level/" * 60 + "file"
    assert place.in_bucket(key) == b"deep"
    assert os.path.samestat((deep / "../..").stat(), deep.parent.parent.stat())


def test_many_folders_at_once(place: Place) -> None:
    """``makedirs`` with the same parents from many sides; the parents' times move on."""
    os.utime(place.path, ns=(0, 0))
    for number in range(100):
        (place.path / f"{number % 10}/{number}/x").mkdir(parents=True)
    assert place.path.stat().st_mtime_ns > 0
    found = [path for path, _, _ in os.walk(place.path)]
    assert len(found) == 1 + 10 + 100 + 100
    assert len(place.keys_in_bucket()) == 10 + 100 + 100


def test_file_system_numbers(place: Place) -> None:
    """``statfs``: names of 255 bytes, and room to write."""
    numbers = os.statvfs(place.path)
    assert numbers.f_namemax == 255
    assert numbers.f_bsize > 0
    assert numbers.f_blocks >= numbers.f_bfree >= numbers.f_bavail > 0
    assert numbers.f_bavail * numbers.f_frsize > 1 << 30
