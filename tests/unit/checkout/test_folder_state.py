"""A manifest that was checked out before is not read again, as long as nothing in the folder changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from s3mount.checkout import folder_state as pictures
from s3mount.manifest.model import Entry
from tests.unit.checkout.folders import World


@pytest.fixture
def known(world: World) -> World:
    """Manifests are known by their digest."""
    world.is_known = True
    return world


def fill(world: World) -> list[Entry]:
    wanted = [world.put(f"d{n % 2}/f{n}", b"%d" % n) for n in range(6)]
    wanted += [world.put("top", b"t"), world.put("empty/", b""), world.put("ü", b"u")]
    assert world.check_out(wanted).downloaded == 8
    return wanted


def test_nothing_but_the_files_is_looked_at(known: World) -> None:
    wanted = fill(known)
    for rehearsal in (False, True):
        summary = known.check_out(wanted, is_rehearsal=rehearsal)
        assert known.read == 0
        assert (summary.files, summary.right, summary.downloaded) == (8, 8, 0)
        assert summary.right_bytes == summary.size_bytes == 8
    (table,) = (known.cache_dir / "checkouts").glob("*.sqlite")
    assert table.exists()


def touch(path: Path) -> None:
    os.utime(path)


def other_mode(path: Path) -> None:
    path.chmod(0o640)


def other_bytes(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"9")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def away(path: Path) -> None:
    path.unlink()


def link_of_the_folder(path: Path) -> None:
    elsewhere = path.parent.parent.parent / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


@pytest.mark.parametrize("change", [touch, other_mode, other_bytes, away, link_of_the_folder])
def test_any_change_is_seen(known: World, change: Callable[[Path], None]) -> None:
    wanted = fill(known)
    change(known.folder / "d1/f3")
    summary = known.check_out(wanted)
    assert known.read == 1
    assert summary.is_complete is (change is not link_of_the_folder)
    if summary.is_complete:
        assert (known.folder / "d1/f3").read_bytes() == b"3"
        assert known.check_out(wanted).right == 8
        assert known.read == 0


def test_a_folder_of_its_own_is_part_of_it(known: World) -> None:
    wanted = fill(known)
    (known.folder / "empty").rmdir()
    assert known.check_out(wanted).is_complete
    assert known.read == 1
    assert (known.folder / "empty").is_dir()


def test_other_manifests_and_selections_are_others(known: World) -> None:
    wanted = fill(known)
    known.check_out(wanted, exclude=["d1/"])
    assert known.read == 1
    summary = known.check_out(wanted, exclude=["d1/"])
    assert (known.read, summary.right, summary.left_out) == (0, 5, 3)
    assert known.check_out(wanted).right == 8
    assert known.read == 1
    assert known.check_out(wanted[:-1]).right == 7
    assert known.read == 1


def test_extras_are_looked_for_each_time(known: World) -> None:
    wanted = fill(known)
    (known.folder / "extra").write_bytes(b"")
    assert known.check_out(wanted).deleted == 0
    assert known.check_out(wanted, delete=True).deleted == 1
    assert known.read == 1


@pytest.mark.parametrize("version_id", [None, "null"])
def test_what_can_change_without_the_manifest_is_asked_for(
    known: World, version_id: str | None
) -> None:
    known.store().set_versioning("suspended")
    entry = Entry("memory", "f", version_id)
    known.put("f", b"one")
    assert known.check_out([entry]).downloaded == 1
    assert known.check_out([entry]).right == 1
    known.put("f", b"two")
    assert known.check_out([entry]).downloaded == 1
    assert known.files() == {"f": b"two"}


def test_what_failed_is_tried_again(known: World) -> None:
    there = known.put("there", b"1")
    gone = msgspec.structs.replace(there, key="gone")
    for _ in range(2):
        assert known.check_out([there, gone]).failed == 1
        assert known.read == 1


def test_leftovers_go_all_the_same(known: World) -> None:
    wanted = fill(known)
    hidden = known.folder / ".s3mount-checkout"
    hidden.mkdir()
    (hidden / "1.part").write_bytes(b"half")
    assert known.check_out(wanted).leftovers == 1
    assert not hidden.exists()


def test_of_very_many_files_none_is_kept(known: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FILES_MAX", 5)
    wanted = fill(known)
    assert known.check_out(wanted).right == 8
    assert known.read == 1


def test_a_damaged_picture_is_no_picture(known: World) -> None:
    wanted = fill(known)
    (place,) = (known.cache_dir / "checkouts").glob("*.picture")
    place.write_bytes(b"\xff" * 100)
    assert known.check_out(wanted).right == 8
    assert known.read == 1
    assert known.check_out(wanted).right == 8
    assert known.read == 0
