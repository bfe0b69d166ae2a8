"""Folders as comparable values, and their comparison with what a bucket holds."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuse.bucket_contents import BucketContents, posix_attributes

HEADS_MAX = 200
"""boto3 makes some 150 HEADs a second; of larger trees every n-th entry's attributes are looked at."""
LIBRARY_FILES_MAX = 2000
LIBRARY_FILE_BYTES_MAX = 192 * 1024


class Entry(NamedTuple):
    """What can be compared of one entry: ``what`` is a digest, a link's target or empty."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    what: str


def entry_of(path: Path) -> Entry:
    """Describe one path without following links; a folder has no size of its own."""
    status = os.lstat(path)
    what, size = "", 0
    if stat.S_ISREG(status.st_mode):
        what, size = hashlib.md5(path.read_bytes()).hexdigest(), status.st_size
    elif stat.S_ISLNK(status.st_mode):
        what = os.readlink(path)
        size = len(os.fsencode(what))
        if status.st_size != size:
            raise AssertionError(f"{path}: size {status.st_size} of a link of {size} bytes")
    return Entry(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size, what)


def tree_of(root: Path) -> dict[str, Entry]:
    """Describe everything below ``root``, by path relative to it."""
    found: dict[str, Entry] = {}
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(root))] = entry_of(path)
    return found


def _raise(error: OSError) -> None:
    raise error


def assert_same_tree(there: Path, here: Path) -> None:
    """The folder ``there`` has the entries of ``here``, equal in every respect."""
    seen, wanted = tree_of(there), tree_of(here)
    assert sorted(seen) == sorted(wanted)
    different = {name: (seen[name], wanted[name]) for name in wanted if seen[name] != wanted[name]}
    assert different == {}


def assert_bucket_holds(contents: BucketContents, prefix: str, tree: dict[str, Entry]) -> None:
    """The bucket has exactly ``tree`` below ``prefix``: keys, bytes and attributes.

    ``prefix`` is empty or ends with ``/``; the marker of the folder itself is not asked for.
    Sizes and digests are compared of all, attributes of at most HEADS_MAX entries.
    """
    wanted = {
        prefix + name + ("/" if stat.S_ISDIR(entry.mode) else ""): entry
        for name, entry in tree.items()
    }
    listed = contents.listing(prefix)
    listed.pop(prefix, None)
    assert sorted(listed) == sorted(wanted)

    looked_at = set(sorted(wanted)[:: 1 + len(wanted) // HEADS_MAX])

    def problem(key: str) -> str | None:
        entry, held = wanted[key], listed[key]
        if held.size != entry.size:
            return f"{key}: {held.size} bytes in the bucket, {entry.size} wanted"
        if stat.S_ISREG(entry.mode) and held.etag != entry.what:
            digest = hashlib.md5(contents.read(key)).hexdigest()
            if digest != entry.what:
                return f"{key}: other bytes in the bucket"
        if stat.S_ISLNK(entry.mode) and os.fsdecode(contents.read(key)) != entry.what:
            return f"{key}: the link's target is not the body"
        if key not in looked_at:
            return None
        kept = posix_attributes(contents.metadata(key))
        meant = (entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        return None if kept == meant else f"{key}: attributes {kept} in the bucket, {meant} wanted"

    with ThreadPoolExecutor(8) as threads:
        problems = [found for found in threads.map(problem, wanted) if found]
    assert problems == []


def copy_library_tree(destination: Path) -> int:
    """Copy a real tree, a subset of the Python standard library; the number of its files."""
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"__pycache__", "site-packages", "dist-packages"}
    count = 0
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(files):
            source = Path(folder, name)
            if count == LIBRARY_FILES_MAX:
                return count
            if source.stat().st_size > LIBRARY_FILE_BYTES_MAX:
                continue
            target = destination / source.relative_to(library)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            count += 1
    return count
