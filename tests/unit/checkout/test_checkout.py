"""Checkouts from buckets in memory: exactly the versions, only what is missing, whatever is in the way."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from s3mount.checkout import ordering
from s3mount.checkout import summary as summary_module
from s3mount.checkout.paths import HIDDEN
from s3mount.errors import (
    AccessDeniedError,
    ExpiredCredentialsError,
    NetworkError,
    NoSuchBucketError,
    StateInUseError,
    StoreError,
    UsageError,
)
from s3mount.manifest import external_sort
from s3mount.manifest.model import Entry
from s3mount.refs import ByteRange, FileSlice, ObjectDigests, ObjectHeaders
from s3mount.s3 import checksums
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer import proving
from s3mount.transfer.fetching import RANGE_BYTES, SMALL_BYTES
from tests.unit.checkout.folders import World, with_etag, without_etag

LARGE = random.Random(5).randbytes(SMALL_BYTES * 2 + 17)


def test_exactly_these_versions(world: World) -> None:
    old = world.put("a/b/c.txt", b"old")
    world.put("a/b/c.txt", b"newer")
    wanted = [old, world.put("top", b""), world.put("ü/ö ä", b"1"), world.put("large", LARGE)]
    summary = world.check_out(wanted)
    assert world.files() == {"a/b/c.txt": b"old", "top": b"", "ü/ö ä": b"1", "large": LARGE}
    assert (summary.downloaded, summary.right, summary.failures) == (4, 0, [])
    assert summary.downloaded_bytes == summary.size_bytes == sum(e.size or 0 for e in wanted)
    assert summary.unproven == 0


def test_nothing_to_do_asks_nobody(world: World) -> None:
    wanted = [world.put(f"d{n % 7}/f{n}", b"%d" % n) for n in range(300)]
    world.check_out(wanted)
    before = world.requests()
    summary = world.check_out(wanted)
    assert (summary.right, summary.downloaded, summary.hashed) == (300, 0, 0)
    assert summary.right_bytes == summary.size_bytes
    assert world.opened == []
    assert world.requests() == before


def test_only_what_differs(world: World) -> None:
    wanted = [world.put(f"f{n}", b"content %d" % n) for n in range(20)]
    world.check_out(wanted)
    (world.folder / "f3").write_bytes(b"content X")
    (world.folder / "f4").unlink()
    (world.folder / "f5").write_bytes(b"longer than it was")
    wanted[6] = world.put("f6", b"another")
    summary = world.check_out(wanted)
    assert (summary.downloaded, summary.right) == (4, 16)
    edited = {"f3.orig": b"content X", "f5.orig": b"longer than it was"}
    right = {f"f{n}": b"content %d" % n for n in range(20)} | {"f6": b"another"}
    assert world.files() == right | edited


def test_changed_bytes_under_the_old_time_are_seen(world: World) -> None:
    wanted = [world.put("f", b"right")]
    world.check_out(wanted)
    path = world.folder / "f"
    before = path.stat()
    path.write_bytes(b"wrong")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert world.check_out(wanted).downloaded == 1
    assert path.read_bytes() == b"right"


def test_what_other_tools_put_there_is_known_by_its_etag(world: World) -> None:
    parts = random.Random(1).randbytes(3 << 20)
    wanted = [world.put("plain", b"as it is"), world.put_parts("parts", parts, 1 << 20)]
    world.folder.mkdir()
    (world.folder / "plain").write_bytes(b"as it is")
    (world.folder / "parts").write_bytes(parts)
    summary = world.check_out(wanted)
    assert (summary.right, summary.downloaded, summary.hashed) == (2, 0, 2)
    summary = world.check_out(wanted)
    assert (summary.right, summary.hashed) == (2, 0)


def test_a_touched_file_is_hashed_and_stays(world: World) -> None:
    wanted = [with_etag(world.put("f", b"x" * 1000), "")]
    world.check_out(wanted)
    os.utime(world.folder / "f")
    summary = world.check_out(wanted)
    assert (summary.right, summary.downloaded, summary.hashed) == (1, 0, 1)
    assert world.check_out(wanted).hashed == 0


def test_the_way_back_to_an_older_manifest(world: World) -> None:
    first = [world.put("f", b"first"), world.put("same", b"same")]
    second = [world.put("f", b"secnd"), first[1]]
    for wanted, content in ((first, b"first"), (second, b"secnd"), (first, b"first")):
        summary = world.check_out(wanted)
        assert (world.folder / "f").read_bytes() == content
    assert summary.right == 1


def test_manifests_that_tell_no_size(world: World) -> None:
    full = [world.put("f", b"abc"), world.put("e", b""), world.put("l", LARGE)]
    wanted = [without_etag(entry) for entry in full]
    assert world.check_out(wanted).downloaded == 3
    assert world.files() == {"f": b"abc", "e": b"", "l": LARGE}
    before = world.requests()
    assert world.check_out(wanted).right == 3
    assert world.requests() == before
    # A file of which nothing is remembered: S3 tells its ETag, and the bytes stay where they are.
    world.cache_dir.rename(world.cache_dir.with_name("gone"))
    summary = world.check_out(wanted)
    assert (summary.right, summary.downloaded) == (3, 0)


def test_a_key_without_a_version_is_what_it_is_now(world: World) -> None:
    wanted = [Entry("memory", "f", None)]
    world.put("f", b"one")
    assert world.check_out(wanted).downloaded == 1
    assert world.check_out(wanted).right == 1
    world.put("f", b"two")
    assert world.check_out(wanted).downloaded == 1
    assert world.files() == {"f": b"two"}


@pytest.mark.parametrize("size", [3, 300_000])
def test_a_key_without_a_version_is_never_another_than_its_etag(world: World, size: int) -> None:
    entry = world.put("f", b"1" * size)
    world.put("f", b"2" * size)
    summary = world.check_out([msgspec.structs.replace(entry, version_id=None)])
    (failure,) = summary.failures
    assert failure.reason == f"the key holds something else now: its ETag is no longer {entry.etag}"
    assert world.files() == {}


def test_a_missing_version_fails_alone(world: World) -> None:
    there = world.put("there", b"1")
    gone = msgspec.structs.replace(world.put("gone", b"2"), version_id="v99999999")
    world.folder.mkdir()
    (world.folder / "gone").write_bytes(b"?")
    summary = world.check_out([gone, there])
    assert [(f.path, f.version_id) for f in summary.failures] == [("gone", "v99999999")]
    assert not summary.is_complete
    assert world.files() == {"there": b"1", "gone": b"?"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"etag": "0" * 32}, "ETag"), ({"size": 2}, "bytes"), ({"size": 300_000}, "bytes")],
)
def test_what_does_not_agree_with_the_manifest_is_not_written(
    world: World, change: dict[str, object], said: str
) -> None:
    entry = msgspec.structs.replace(world.put("f", b"abc"), **change)
    summary = world.check_out([entry])
    assert len(summary.failures) == 1
    assert said in summary.failures[0].reason
    assert world.files() == {}


def test_bytes_that_changed_on_the_way_are_refused(world: World) -> None:
    entry = world.put("f", LARGE)
    world.alter(entry, bytes(len(LARGE)))
    summary = world.check_out([entry])
    assert "not what its ETag or checksum says" in summary.failures[0].reason
    assert world.store().requests["fetch"] == 2
    assert world.files() == {}
    small = world.put("small", b"abc")
    world.alter(small, b"abd")
    assert [failure.path for failure in world.check_out([small]).failures] == ["small"]
    assert world.files() == {}


def test_more_than_5_gib_comes_in_ranges(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written here, as the folder's disk may have less: the file is one hole, and not read."""
    size = (5 << 30) + 12345
    entry = world.put_parts("huge", b"x" * 10, 5)
    world.alter(entry, size=size)
    asked: list[tuple[int, int]] = []

    async def fetch(key: str, byte_range: ByteRange, sink: FileSlice, **more: Any) -> Any:
        await trio.lowlevel.checkpoint()
        assert (sink.offset, sink.length) == (byte_range.start, byte_range.length)
        asked.append((byte_range.start, byte_range.length))
        return await world.store().observer().head(key, version_id=entry.version_id)

    def hash_file(descriptor: int, length: int, *told: Any) -> proving.FileHashes:
        assert (length, os.fstat(descriptor).st_size) == (size, size)
        return proving.FileHashes(b"d" * 16, True)

    world.store().fetch = fetch  # type: ignore[method-assign]
    monkeypatch.setattr(proving, "hash_file", hash_file)
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: Room())
    wanted = msgspec.structs.replace(entry, size=size)
    assert world.check_out([wanted]).failures == []
    asked.sort()
    assert asked[0][0] == 0
    assert all(a + n == b for (a, n), (b, _) in pairwise(asked))
    assert sum(asked[-1]) == size
    assert max(n for _, n in asked) <= RANGE_BYTES
    assert (world.folder / "huge").stat().st_size == size
    assert (world.folder / "huge").stat().st_blocks == 0


class Room:
    """As much as is needed."""

    f_bavail = 1 << 40
    f_frsize = 4096


def opaque(world: World) -> list[Entry]:
    """As with SSE-C and SSE-KMS: the ETags have the form of an MD5 and are none."""
    world.stores["memory"] = MemoryStore(versioning="enabled", part_bytes_min=1, opaque_etags=True)
    return [
        world.put("small", b"x" * 10),
        world.put("large", LARGE),
        world.put_parts("parts", LARGE, 100_000),
    ]


def test_what_nothing_proves_is_told_each_time_and_never_taken_for_right(world: World) -> None:
    entries = opaque(world)
    for _ in range(2):
        summary = world.check_out(entries)
        assert (summary.downloaded, summary.right, summary.unproven) == (3, 0, 3)
        assert sorted(summary.unproven_paths) == ["large", "parts", "small"]
        assert summary.is_complete
    world.check_out(entries, is_rehearsal=True)
    assert [action for action, _ in world.told] == ["download"] * 3


def test_what_nothing_proves_may_be_accepted_and_is_told_all_the_same(world: World) -> None:
    entries = opaque(world)
    assert world.check_out(entries, accept_unproven=True).downloaded == 3
    for is_rehearsal in (False, True):
        summary = world.check_out(entries, accept_unproven=True, is_rehearsal=is_rehearsal)
        assert (summary.downloaded, summary.right, summary.unproven) == (0, 0, 3)
    os.utime(world.folder / "small")
    (world.folder / "large").write_bytes(bytes(len(LARGE)))
    summary = world.check_out(entries, accept_unproven=True)
    assert (summary.downloaded, summary.right, summary.unproven) == (1, 0, 3)
    assert (world.folder / "large").read_bytes() == LARGE
    # Without the option they are what they were: not proven, and fetched again.
    assert world.check_out(entries).downloaded == 3


def test_stored_checksums_prove_what_opaque_etags_do_not(world: World) -> None:
    entries = opaque(world)
    world.store().tells_checksums = True
    assert world.check_out(entries).unproven == 0
    summary = world.check_out(entries)
    assert (summary.right, summary.downloaded, summary.hashed) == (3, 0, 0)
    # Without what is remembered the store is asked for its checksums, and for bytes only where they are few.
    world.cache_dir.rename(world.cache_dir.with_name("gone"))
    summary = world.check_out(entries)
    assert (summary.right, summary.downloaded) == (2, 1)


@pytest.mark.parametrize("tells", ["lengths", "checksums"])
def test_damaged_parts_are_refused_where_the_store_can_tell(world: World, tells: str) -> None:
    entry = world.put_parts("parts", LARGE, 100_000)
    store = world.store()
    store.tells_part_lengths = tells == "lengths"
    store.tells_checksums = tells == "checksums"
    told = trio.run(store.observer().digests, "parts")
    world.alter(entry, LARGE[::-1])
    if tells == "checksums":
        told = msgspec.structs.replace(
            told, checksums={"crc64nvme": checksums.crc64nvme(LARGE)}, part_lengths=()
        )

        async def digests(key: str, *, version_id: str | None = None) -> ObjectDigests:
            await trio.lowlevel.checkpoint()
            return told

        store.digests = digests  # type: ignore[method-assign]
    summary = world.check_out([entry])
    assert "not what its ETag or checksum says" in summary.failures[0].reason
    assert (world.files(), store.requests["fetch"]) == ({}, 2)
    # What a checksum shows to be wrong is not accepted either.
    summary = world.check_out([entry], accept_unproven=True)
    assert (summary.failed, summary.unproven) == ((1, 0) if tells == "checksums" else (0, 1))


def test_damaged_parts_of_which_nothing_is_told_are_not_right_later(world: World) -> None:
    """Nor is a table of digests that remembered them as right, from before there was a difference."""
    entry = world.put_parts("parts", LARGE, 100_000)
    world.store().tells_part_lengths = False
    world.alter(entry, LARGE[::-1])
    summary = world.check_out([entry])
    assert (summary.downloaded, summary.right, summary.unproven) == (1, 0, 1)
    world.alter(entry, LARGE)
    assert world.check_out([entry]).downloaded == 1
    assert world.files() == {"parts": LARGE}


def test_etags_that_look_like_md5s_and_are_none_need_a_word(world: World) -> None:
    entries = []
    for key, data in (("small", b"x" * 10), ("large", LARGE)):
        entry = world.put(key, data)
        world.alter(entry, etag="5" * 32)
        entries.append(with_etag(entry, "5" * 32))
    summary = world.check_out(entries)
    assert (summary.failed, world.files()) == (2, {})
    assert all("--accept-unproven" in failure.reason for failure in summary.failures)
    summary = world.check_out(entries, accept_unproven=True)
    assert (summary.downloaded, summary.unproven) == (2, 2)
    assert world.files() == {"small": b"x" * 10, "large": LARGE}


def test_what_is_no_md5_where_others_are_is_damage(world: World) -> None:
    damaged, right = world.put("damaged", b"abc"), world.put("right", b"abc")
    world.alter(damaged, b"abd")
    world.check_out([right])
    (world.folder / "right").unlink()

    async def later(key: str, **more: Any) -> Any:
        # The other one comes first, whichever way the tasks run.
        if key == "damaged":
            await arrived.wait()
        try:
            return await get(key, **more)
        finally:
            if key == "right":
                arrived.set()

    arrived = trio.Event()
    get = world.store().get
    world.store().get = later  # type: ignore[method-assign]
    summary = world.check_out([damaged, right], accept_unproven=True)
    assert [failure.path for failure in summary.failures] == ["damaged"]
    assert world.files() == {"right": b"abc"}


def test_modes_and_times(world: World) -> None:
    stored = ObjectHeaders(metadata={"mode": "33256", "mtime": "1600000000.5"})
    by_object = world.put("by-object", b"1", headers=stored)
    by_manifest = msgspec.structs.replace(
        world.put("by-manifest", b"2", headers=stored),
        mode=0o100600,
        mtime_ns=1_500_000_000 * 10**9,
    )
    plain = world.put("plain", b"3")
    setuid = msgspec.structs.replace(world.put("setuid", b"4"), mode=0o104755)
    world.check_out([by_object, by_manifest, plain, setuid])

    def look(name: str) -> tuple[int, int]:
        found = (world.folder / name).stat()
        return stat.S_IMODE(found.st_mode), found.st_mtime_ns

    umask = os.umask(0)
    os.umask(umask)
    assert look("by-object") == (0o750, 1_600_000_000_500_000_000)
    assert look("by-manifest") == (0o600, 1_500_000_000 * 10**9)
    assert look("plain") == (0o666 & ~umask, plain.last_modified_ns)
    assert look("setuid")[0] == 0o755
    again = msgspec.structs.replace(by_manifest, mode=0o640)
    summary = world.check_out([by_object, again, plain, setuid])
    assert (summary.right, summary.adjusted, summary.downloaded) == (4, 1, 0)
    assert look("by-manifest") == (0o640, 1_500_000_000 * 10**9)
    assert world.check_out([by_object, again, plain, setuid]).adjusted == 0


def test_links_and_folders_of_the_bucket(world: World) -> None:
    link = ObjectHeaders(metadata={"mode": str(stat.S_IFLNK | 0o777)})
    wanted = [world.put("link", b"/etc/passwd", headers=link), world.put("empty/", b"")]
    assert world.check_out(wanted).is_complete
    assert world.files() == {"link": b"/etc/passwd", "empty/": b""}
    assert not (world.folder / "link").is_symlink()
    assert not (world.folder / "link").stat().st_mode & 0o111


def test_several_buckets_are_folders(world: World) -> None:
    wanted = [world.put("k", b"1", "one"), world.put("k", b"2", "two")]
    world.check_out(wanted)
    assert world.files() == {"one/k": b"1", "two/k": b"2"}
    assert world.check_out(reversed(wanted)).right == 2


def test_a_bucket_that_cannot_be_opened_fails_alone(world: World) -> None:
    wanted = [world.put("k", b"1", "one"), world.put("k", b"2", "two")]
    broken = world.stores.pop("two")

    async def refuse() -> None:
        raise UsageError("'two' is no bucket name")

    broken.__class__ = type("Broken", (type(broken),), {"__aenter__": lambda self: refuse()})
    world.stores["two"] = broken
    summary = world.check_out(wanted)
    assert [failure.reason for failure in summary.failures] == ["'two' is no bucket name"]
    assert world.files() == {"one/k": b"1"}


def test_refused_keys_leave_the_rest_alone(world: World) -> None:
    bad = ["../out", "/etc/x", "a/../../out", "a//b", "./c", "x" * 256, f"{HIDDEN}/1.part", "n\0l"]
    wanted = [msgspec.structs.replace(world.put("good", b"1"), key=key) for key in bad]
    wanted.append(world.put("good", b"1"))
    summary = world.check_out(wanted)
    assert sorted(failure.key for failure in summary.failures) == sorted(bad)
    assert world.files() == {"good": b"1"}
    assert not (world.folder.parent / "out").exists()


def test_a_file_that_is_also_a_folder(world: World) -> None:
    keys = ["a", "a-b", "a/b", "a/b/c", "z", "z/"]
    wanted = [world.put(key, b"" if key == "z/" else key.encode()) for key in keys]
    summary = world.check_out(wanted)
    assert sorted(failure.path for failure in summary.failures) == ["a", "a/b", "z"]
    assert world.files() == {"a-b": b"a-b", "a/b/c": b"a/b/c", "z/": b""}
    again = world.check_out(wanted)
    assert (again.right, again.downloaded, len(again.failures)) == (2, 0, 3)


def test_a_path_that_is_named_twice(world: World) -> None:
    wanted = [
        world.put("f", b"1"),
        world.put("f", b"2"),
        world.put("f", b"3"),
        world.put("g", b"4"),
    ]
    summary = world.check_out(wanted)
    one, two = (entry.version_id for entry in wanted[:2])
    assert [(failure.path, failure.reason) for failure in summary.failures] == [
        ("f", f"the manifest names two versions of it: {one} and {two}")
    ]
    assert world.files() == {"g": b"4"}


# What is in the way, and what is too much.


def test_a_link_on_the_way_is_never_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    world.folder.mkdir()
    (world.folder / "d").symlink_to(outside)
    wanted = [world.put("d/f", b"1"), world.put("d/e/f", b"2"), world.put("g", b"3")]
    for delete in (False, True):
        summary = world.check_out(wanted, delete=delete)
        assert sorted(failure.path for failure in summary.failures) == ["d/e/f", "d/f"]
        assert all("symbolic link" in failure.reason for failure in summary.failures)
        assert [path.name for path in outside.iterdir()] == ["kept"]


def test_a_link_in_a_files_place_is_replaced_not_followed(world: World, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    world.folder.mkdir()
    (world.folder / "f").symlink_to(victim)
    assert world.check_out([world.put("f", b"new")]).is_complete
    assert not (world.folder / "f").is_symlink()
    assert (victim.read_bytes(), (world.folder / "f").read_bytes()) == (b"untouched", b"new")


def test_a_link_that_appears_meanwhile_is_not_followed(world: World, tmp_path: Path) -> None:
    """Between the look and the writing, while the bytes are on their way."""
    outside = tmp_path / "outside"
    outside.mkdir()
    entry = world.put("d/f", b"1")
    other = world.put("d/g", LARGE)

    class Attack:
        async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
            place = world.folder / "d"
            if not place.is_symlink():
                place.symlink_to(outside)

        async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
            return

    world.store().faults = Attack()
    summary = world.check_out([entry, other])
    assert len(summary.failures) == 2
    assert list(outside.iterdir()) == []


def test_the_hidden_folder_is_no_link(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.part").write_bytes(b"mine")
    world.folder.mkdir()
    (world.folder / HIDDEN).symlink_to(outside)
    with pytest.raises(Exception, match="no folder of checkout's own"):
        world.check_out([world.put("f", b"1")])
    assert (outside / "1.part").read_bytes() == b"mine"


def test_hard_links_are_parted_not_written_through(world: World) -> None:
    world.folder.mkdir()
    (world.folder / "partner").write_bytes(b"mine")
    os.link(world.folder / "partner", world.folder / "f")
    world.check_out([world.put("f", b"new!")])
    assert (world.folder / "partner").read_bytes() == b"mine"


def test_obstacles_stay_unless_told_to_delete(world: World) -> None:
    world.folder.mkdir()
    (world.folder / "file").mkdir()
    (world.folder / "file/inside").write_bytes(b"1")
    (world.folder / "folder").write_bytes(b"2")
    wanted = [world.put("file", b"f"), world.put("folder/a", b"a"), world.put("folder/b", b"b")]
    before = world.files()
    summary = world.check_out(wanted)
    assert len(summary.failures) == 3
    assert world.files() == before
    summary = world.check_out(wanted, delete=True)
    assert summary.is_complete
    assert world.files() == {"file": b"f", "folder/a": b"a", "folder/b": b"b"}


def test_delete_removes_what_the_manifest_does_not_have(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    wanted = [world.put("a/x", b"1"), world.put("a/b/y", b"2"), world.put("c", b"3")]
    world.check_out(wanted)
    (world.folder / "a/extra").write_bytes(b"")
    (world.folder / "a/b/extra").write_bytes(b"")
    (world.folder / "deep/er").mkdir(parents=True)
    (world.folder / "deep/er/f").write_bytes(b"")
    (world.folder / "link").symlink_to(outside)
    (world.folder / os.fsdecode(b"not-\xff-utf8")).write_bytes(b"")
    before = world.files()
    assert world.check_out(wanted).deleted == 0
    assert world.files() == before
    rehearsal = world.check_out(wanted, delete=True, is_rehearsal=True)
    assert rehearsal.deleted == 5
    assert ("delete", "deep/er/f") in world.told
    assert world.files() == before
    summary = world.check_out(wanted, delete=True)
    assert (summary.deleted, summary.right) == (5, 3)
    assert world.files() == {"a/x": b"1", "a/b/y": b"2", "c": b"3"}
    assert (outside / "kept").exists()
    assert not (world.folder / "deep").exists()


def test_delete_by_an_empty_manifest_is_refused(world: World) -> None:
    world.check_out([world.put("f", b"1")])
    with pytest.raises(UsageError, match="names nothing"):
        world.check_out([], delete=True)
    assert world.files() == {"f": b"1"}


def test_what_is_excluded_is_neither_written_nor_deleted(world: World) -> None:
    wanted = [world.put(key, b"1") for key in ("a.csv", "b.tmp", "d/c.csv", "d/e.tmp")]
    world.folder.mkdir()
    (world.folder / "mine.tmp").write_bytes(b"mine")
    (world.folder / "mine.csv").write_bytes(b"mine")
    (world.folder / "own").mkdir()
    (world.folder / "own/x.tmp").write_bytes(b"mine")
    summary = world.check_out(wanted, exclude=["*.tmp"], delete=True)
    assert (summary.downloaded, summary.left_out, summary.deleted) == (2, 2, 1)
    assert world.files() == {
        "a.csv": b"1",
        "d/c.csv": b"1",
        "mine.tmp": b"mine",
        "own/x.tmp": b"mine",
    }
    summary = world.check_out(wanted, include=["d/"])
    assert (summary.downloaded, summary.right, summary.left_out) == (1, 1, 2)


# Rehearsals, kills, and two at once.


def test_a_rehearsal_changes_nothing_and_asks_nobody(world: World) -> None:
    wanted = [world.put("a", b"1"), world.put("b", b"2"), world.put("d/c", b"3")]
    summary = world.check_out(wanted, is_rehearsal=True)
    assert (summary.downloaded, summary.downloaded_bytes) == (3, 3)
    assert not world.folder.exists()
    assert world.told == [("download", "a"), ("download", "b"), ("download", "d/c")]
    world.check_out(wanted[:1])
    (world.folder / "b").write_bytes(b"X")
    before = world.requests()
    for hashed in (1, 0):
        summary = world.check_out(wanted, is_rehearsal=True)
        assert (summary.right, summary.downloaded, summary.hashed) == (1, 2, hashed)
    assert world.requests() == before
    assert world.files() == {"a": b"1", "b": b"X"}
    assert world.check_out(wanted).downloaded == 2


def test_leftovers_of_a_killed_run_are_removed(world: World) -> None:
    hidden = world.folder / HIDDEN
    hidden.mkdir(parents=True)
    (hidden / "1.part").write_bytes(b"half")
    (hidden / "2.part").write_bytes(b"half")
    summary = world.check_out([world.put("f", b"1")])
    assert summary.leftovers == 2
    assert world.files() == {"f": b"1"}
    assert not hidden.exists()


def test_one_checkout_at_a_time(world: World) -> None:
    entry = world.put("f", b"1")
    refused: list[str] = []

    class Second:
        async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
            try:
                world.check_out([entry])
            except StateInUseError as error:
                refused.append(str(error))

        async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
            return

    world.store().faults = Second()
    assert world.check_out([entry]).is_complete
    assert len(refused) == 1
    assert str(world.folder) in refused[0]


def test_when_nobody_answers_the_rest_is_given_up(world: World) -> None:
    wanted = [world.put(f"f{n:04}", b"%d" % n) for n in range(300)]

    class Dead:
        async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
            raise NetworkError("nobody is there")

        async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
            return

    world.store().faults = Dead()
    summary = world.check_out(wanted, delete=True)
    assert summary.stopped == "nobody is there"
    assert world.requests() < 200
    assert world.files() == {}


@pytest.mark.parametrize(
    ("error", "is_stopped", "asked_max"),
    [
        (ExpiredCredentialsError("the token has expired"), True, 200),
        (NoSuchBucketError("the bucket is gone"), False, 200),
        (AccessDeniedError("not yours"), False, 400),
    ],
)
def test_what_is_true_of_all_is_not_asked_for_each(
    world: World, error: StoreError, is_stopped: bool, asked_max: int
) -> None:
    wanted = [world.put(f"f{n:04}", b"%d" % n) for n in range(300)]

    class Refusing:
        async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
            await trio.lowlevel.checkpoint()
            raise error

        async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
            return

    world.store().faults = Refusing()
    before = world.requests()
    summary = world.check_out(wanted)
    assert summary.stopped == (str(error) if is_stopped else "")
    assert world.requests() - before <= asked_max
    if not is_stopped:
        assert {failure.reason for failure in summary.failures} == {str(error)}
        assert len(summary.failures) == 300


def test_a_damaged_table_of_digests_is_begun_anew(world: World) -> None:
    world.is_known = False
    wanted = [world.put("f", b"1")]
    world.check_out(wanted)
    (table,) = (world.cache_dir / "checkouts").glob("*.sqlite")
    table.write_bytes(b"no database" * 1000)
    summary = world.check_out(wanted)
    assert (summary.right, summary.hashed) == (1, 1)
    assert world.check_out(wanted).hashed == 0


def test_without_a_place_for_the_table_all_works(world: World, tmp_path: Path) -> None:
    world.cache_dir = tmp_path / "file"
    world.cache_dir.write_bytes(b"")
    wanted = [world.put("f", b"1")]
    assert world.check_out(wanted).downloaded == 1
    assert world.check_out(wanted).right == 1


def test_long_manifests_are_sorted_on_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "HELD_MAX", 10)
    monkeypatch.setattr(external_sort, "ENTRIES_IN_MEMORY_MAX", 7)
    wanted = [world.put(f"d{n % 3}/f{n}", b"%d" % n, f"b{n % 2}") for n in range(40)]
    wanted.append(wanted[5])
    random.Random(3).shuffle(wanted)
    summary = world.check_out(wanted)
    assert summary.failures == []
    assert (summary.files, summary.downloaded) == (40, 40)
    assert world.check_out(wanted).right == 40


def test_failures_are_bounded_and_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "FAILURES_KEPT_MAX", 30)
    there = world.put("there", b"1")
    wanted = [msgspec.structs.replace(there, key=f"gone{n:03}") for n in range(100)]
    wanted += [msgspec.structs.replace(there, key=f"../{n:03}") for n in range(50)]
    summary = world.check_out([there, *wanted])
    assert (summary.failed, len(summary.failures), summary.downloaded) == (150, 30, 1)
    lines = summary.failure_lines()
    assert len(lines) == 22
    assert lines[0].startswith("../000: ")
    assert lines[-2].startswith("10 more: '..'")
    assert lines[-1] == "120 more"


# What patterns keep from being deleted.


@pytest.mark.parametrize(
    "pattern",
    ["build", "build/", "build/*", "build/**", "./build/", "/build", "**/build", "{dist,build}/**"],
)
def test_what_an_excluded_folder_holds_is_not_deleted(world: World, pattern: str) -> None:
    wanted = [world.put("src/a", b"a"), world.put("build/out", b"not wanted")]
    (world.folder / "build/deep/er").mkdir(parents=True)
    (world.folder / "build/mine").write_bytes(b"mine")
    (world.folder / "build/deep/er/mine").write_bytes(b"mine too")
    (world.folder / "old").write_bytes(b"old")
    kept = {"build/mine": b"mine", "build/deep/er/mine": b"mine too"}
    rehearsed = world.check_out(wanted, delete=True, exclude=[pattern], is_rehearsal=True)
    assert world.told == [("download", "src/a"), ("delete", "old")]
    summary = world.check_out(wanted, delete=True, exclude=[pattern])
    assert world.files() == kept | {"src/a": b"a"}
    assert (summary.deleted, summary.left_out) == (rehearsed.deleted, rehearsed.left_out) == (1, 1)
    assert world.warned == []


def test_empty_folders_that_are_not_meant_stay(world: World) -> None:
    for name in ("build/empty", "other/empty", "logs/empty"):
        (world.folder / name).mkdir(parents=True)
    (world.folder / "other/x.csv").write_bytes(b"x")
    wanted = [world.put("f", b"1")]
    world.check_out(wanted, delete=True, include=["*.csv", "f"])
    assert (world.folder / "other/empty").is_dir()
    assert not (world.folder / "other/x.csv").exists()
    world.check_out(wanted, delete=True, exclude=["build/", "other/*"])
    assert sorted(path.name for path in world.folder.iterdir()) == ["build", "f", "other"]
    assert (world.folder / "build/empty").is_dir()
    assert (world.folder / "other/empty").is_dir()


def test_a_pattern_that_matches_nothing_is_told_before_anything_is_deleted(world: World) -> None:
    (world.folder / "build/deep").mkdir(parents=True)
    (world.folder / "build/deep/x.o").write_bytes(b"x")
    seen: list[bool] = []
    world.warn = lambda line: seen.append((world.folder / "build/deep/x.o").exists())
    wanted = [world.put("f", b"1"), world.put("left.out", b"2")]
    excluded = ["biuld/", "*.o", "*.out"]
    world.check_out(wanted, delete=True, exclude=[*excluded, "*.tmp"], is_rehearsal=True)
    assert [line.partition(" matches")[0] for line in world.warned] == [
        "--exclude 'biuld/'",
        "--exclude '*.tmp'",
    ]
    world.check_out(wanted, delete=True, exclude=["biuld/", "*.out"])
    assert len(world.warned) == 1
    assert seen == [True, True, True]
    assert not (world.folder / "build").exists()
    # Where all is as it was and nothing can be deleted, nothing is looked at that closely.
    world.check_out(wanted, include=["f", "g"])
    assert [line.partition(" matches")[0] for line in world.warned] == ["--include 'g'"]
