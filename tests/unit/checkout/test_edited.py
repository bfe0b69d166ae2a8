"""Files that were edited in the folder since they were checked out: told, kept, and never taken for the version."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3mount.checkout.options import Changed
from s3mount.manifest.model import Entry
from s3mount.testing.memory_store import MemoryStore
from tests.unit.checkout.folders import World

MINE = {"longer": b"mine, and longer", "same size": b"min", "touched": b"old"}


def edited(world: World) -> list[Entry]:
    """A folder whose files were edited as MINE says; one was only touched. What is wanted now."""
    before = [world.put(key, b"old") for key in MINE]
    world.check_out(before)
    for name, body in MINE.items():
        (world.folder / name).write_bytes(body)
    return [world.put(key, b"new") for key in MINE]


ASIDE = {"longer.orig": MINE["longer"], "same size.orig": MINE["same size"]}


@pytest.mark.parametrize("rehearsed", [False, True])
def test_they_are_kept_beside_the_version(world: World, rehearsed: bool) -> None:
    wanted = edited(world)
    if rehearsed:
        told = world.check_out(wanted, is_rehearsal=True)
        assert sorted(world.told) == [
            *(("download", name) for name in sorted(MINE)),
            ("keep aside", "longer"),
            ("keep aside", "same size"),
        ]
        assert (told.edited, world.files()) == (2, MINE)
    summary = world.check_out(wanted)
    assert world.files() == dict.fromkeys(MINE, b"new") | ASIDE
    assert (summary.downloaded, summary.edited, summary.is_complete) == (3, 2, True)
    assert summary.asides == {"longer": "longer.orig", "same size": "same size.orig"}
    assert summary.edited_lines() == [
        f"{name} was edited here: kept as {name}.orig" for name in summary.edited_paths
    ]
    # Again, and with --delete: they stay as long as their file is wanted.
    for delete in (False, True):
        summary = world.check_out(wanted, delete=delete)
        assert (summary.right, summary.edited, summary.deleted) == (3, 0, 0)
    assert world.files() == dict.fromkeys(MINE, b"new") | ASIDE
    world.check_out(wanted[:1], delete=True)
    assert world.files() == {"longer": b"new", "longer.orig": MINE["longer"]}


def test_the_same_manifest_puts_its_version_back_and_keeps_the_edited_one(world: World) -> None:
    wanted = [world.put("f", b"version")]
    world.check_out(wanted)
    for number, body in enumerate((b"edited!", b"again!!", b"thrice!")):
        (world.folder / "f").write_bytes(body)
        aside = "f.orig" + (f".{number}" if number else "")
        assert world.check_out(wanted).asides == {"f": aside}
        assert world.files()[aside] == body
    assert world.files()["f"] == b"version"


def test_they_may_be_left_or_overwritten(world: World) -> None:
    wanted = edited(world)
    world.check_out(wanted, changed=Changed.KEEP, is_rehearsal=True)
    assert [path for action, path in world.told if action == "leave"] == ["longer", "same size"]
    for _ in range(2):
        summary = world.check_out(wanted, changed=Changed.KEEP)
        assert (summary.edited, summary.asides, summary.failed) == (2, {}, 0)
        assert world.files() == MINE | {"touched": b"new"}
    assert summary.edited_lines()[0] == "longer was edited here: left as it is"
    summary = world.check_out(wanted, changed=Changed.OVERWRITE)
    assert (summary.downloaded, summary.edited) == (2, 0)
    assert world.files() == dict.fromkeys(MINE, b"new")


def test_what_was_not_proven_is_checkouts_own_all_the_same(world: World) -> None:
    """It is fetched again each time, without a copy of each time beside it."""
    world.stores["memory"] = MemoryStore(versioning="enabled", opaque_etags=True)
    wanted = [world.put("f", b"version")]
    for _ in range(2):
        summary = world.check_out(wanted)
        assert (summary.downloaded, summary.edited) == (1, 0)
    (world.folder / "f").write_bytes(b"edited!")
    assert world.check_out(wanted).asides == {"f": "f.orig"}
    assert world.files() == {"f": b"version", "f.orig": b"edited!"}


def test_what_no_checkout_put_there_is_replaced(world: World) -> None:
    world.folder.mkdir()
    (world.folder / "f").write_bytes(b"of another tool")
    assert world.check_out([world.put("f", b"version")]).edited == 0
    assert world.files() == {"f": b"version"}


@pytest.mark.parametrize("links", [True, False])
def test_a_link_or_another_thing_in_its_place_is_kept_too(
    world: World, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on file systems without hard links, where it is renamed."""
    if not links:

        def refuse(*given: Any, **more: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    wanted = [world.put(key, key.encode()) for key in ("link", "file")]
    world.check_out(wanted)
    outside = world.folder.parent / "outside"
    outside.write_bytes(b"outside")
    (world.folder / "link").unlink()
    (world.folder / "link").symlink_to(outside)
    (world.folder / "file").write_bytes(b"edited")
    (world.folder / "file.orig").write_bytes(b"taken")
    world.check_out(wanted)
    assert world.files() == {
        "link": b"link",
        "link.orig": b"-> " + os.fsencode(outside),
        "file": b"file",
        "file.orig": b"taken",
        "file.orig.1": b"edited",
    }
    assert outside.read_bytes() == b"outside"


class Meddling(MemoryStore):
    """Somebody writes to the folder while the version is on its way."""

    meddle: Callable[[], object] = staticmethod(lambda: None)

    async def get(self, *given: Any, **more: Any) -> Any:
        self.meddle()
        return await super().get(*given, **more)


@pytest.mark.parametrize("was_there", [True, False])
def test_what_is_written_meanwhile_is_kept_too(world: World, was_there: bool) -> None:
    store = world.stores["memory"] = Meddling(versioning="enabled")
    place: Path = world.folder / "f"
    if was_there:
        world.check_out([world.put("f", b"old")])
    wanted = [world.put("f", b"new")]
    store.meddle = lambda: place.write_bytes(b"mine")
    assert world.check_out(wanted).asides == {"f": "f.orig"}
    assert world.files() == {"f": b"new", "f.orig": b"mine"}


def test_a_wanted_file_of_that_name_does_not_overwrite_it(world: World) -> None:
    world.check_out([world.put("f", b"old")])
    (world.folder / "f").write_bytes(b"mine")
    summary = world.check_out([world.put("f", b"new"), world.put("f.orig", b"wanted")])
    files = world.files()
    assert (files.pop("f"), files.pop("f.orig")) == (b"new", b"wanted")
    assert list(files.values()) == [b"mine"]
    assert summary.is_complete


def test_killed_between_the_two_names_it_is_kept_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [world.put("f", b"version")]
    world.check_out(wanted)
    (world.folder / "f").write_bytes(b"mine")

    def die(*given: Any, **more: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        assert world.check_out(wanted).failed == 1
    assert world.files() == {"f": b"mine", "f.orig": b"mine"}
    assert world.check_out(wanted).asides == {"f": "f.orig"}
    assert world.files() == {"f": b"version", "f.orig": b"mine"}


def test_a_link_planted_where_it_would_be_kept_is_not_followed(world: World) -> None:
    wanted = [world.put("f", b"version")]
    world.check_out(wanted)
    outside = world.folder.parent / "outside"
    outside.write_bytes(b"outside")
    (world.folder / "f.orig").symlink_to(outside)
    (world.folder / "f").write_bytes(b"mine")
    assert world.check_out(wanted).asides == {"f": "f.orig.1"}
    assert outside.read_bytes() == b"outside"
