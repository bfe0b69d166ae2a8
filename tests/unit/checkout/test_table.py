"""The table in docs/CHECKOUT.md of what is overwritten and deleted, walked through row by row."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from s3mount.checkout.options import Changed
from s3mount.manifest.model import Entry
from s3mount.testing.memory_store import MemoryStore
from tests.unit.checkout.folders import World

DOCUMENT = Path(__file__).parents[3] / "docs/CHECKOUT.md"
MODES: dict[str, dict[str, Any]] = {
    "by default": {},
    "`--keep-changed`": {"changed": Changed.KEEP},
    "`--overwrite-changed`": {"changed": Changed.OVERWRITE},
    "`--delete`": {"delete": True},
}


class Meddling(MemoryStore):
    """Calls ``meddle`` before each answer."""

    meddle: Callable[[], object] = staticmethod(lambda: None)

    async def get(self, *given: Any, **more: Any) -> Any:
        self.meddle()
        return await super().get(*given, **more)


class Scene(NamedTuple):
    """What is wanted, the path of what the row is about, and the path of the wanted file there."""

    wanted: list[Entry]
    path: str
    version: str = ""


def made(world: World, path: str, body: bytes = b"mine") -> None:
    place = world.folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(body)


def right(world: World) -> Scene:
    wanted = [world.put("f", b"version")]
    world.check_out(wanted)
    return Scene(wanted, "f")


def untouched(world: World) -> Scene:
    world.check_out([world.put("f", b"before!")])
    return Scene([world.put("f", b"version")], "f", "f")


def edited(world: World) -> Scene:
    scene = untouched(world)
    made(world, "f")
    return scene


def changing(world: World) -> Scene:
    store = world.stores["memory"] = Meddling(versioning="enabled")
    scene = untouched(world)
    store.meddle = lambda: made(world, "f")
    return scene


def of_another(world: World) -> Scene:
    made(world, "f")
    return Scene([world.put("f", b"version")], "f", "f")


def extra(world: World) -> Scene:
    made(world, "d/extra")
    return Scene([world.put("f", b"version")], "d/extra")


def excluded(world: World) -> Scene:
    made(world, "kept/deep/extra")
    return Scene([world.put("f", b"version")], "kept/deep/extra")


def aside(world: World) -> Scene:
    made(world, "f.orig")
    return Scene([world.put("f", b"version")], "f.orig")


def link(world: World) -> Scene:
    world.folder.mkdir()
    (world.folder / "link").symlink_to(world.folder.parent / "outside")
    return Scene([world.put("f", b"version")], "link")


def link_on_the_way(world: World) -> Scene:
    return Scene([*link(world).wanted, world.put("link/f", b"version")], "link", "link/f")


def folder_in_the_way(world: World) -> Scene:
    made(world, "f/deep/mine")
    return Scene([world.put("f", b"version")], "f/deep/mine", "f")


def file_in_the_way(world: World) -> Scene:
    made(world, "d")
    return Scene([world.put("d/f", b"version")], "d", "d/f")


def empty_folder(world: World) -> Scene:
    (world.folder / "empty").mkdir(parents=True)
    return Scene([world.put("f", b"version")], "empty")


SCENES: dict[str, Callable[[World], Scene]] = {
    "a file as the manifest has it": right,
    "a file that checkout put there, untouched since; the manifest has another version": untouched,
    "a file that checkout put there, edited since": edited,
    "a file that changes while its version is fetched": changing,
    "another file than the manifest's, which no checkout is remembered to have put there": of_another,
    "a file that the manifest does not have": extra,
    "a file that the manifest does not have, in a folder that `--exclude` names": excluded,
    "NAME.orig beside a file NAME of the manifest": aside,
    "a symbolic link that the manifest does not have, to a file or folder elsewhere": link,
    "a symbolic link on the way to a file of the manifest": link_on_the_way,
    "a folder with files where the manifest has a file": folder_in_the_way,
    "a file where the manifest has a folder": file_in_the_way,
    "an empty folder that the manifest does not have": empty_folder,
}


def rows() -> list[tuple[str, str, str]]:
    """Each cell of the table: what lies there, how checkout is called, what becomes of it."""
    lines = DOCUMENT.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| in DIR there is |"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    head, _, *body = table
    assert head[1:] == list(MODES)
    assert [row[0] for row in body] == list(SCENES)
    return [(row[0], mode, cell) for row in body for mode, cell in zip(MODES, row[1:], strict=True)]


@pytest.mark.parametrize(("there", "mode", "becomes"), rows())
def test_the_table_of_what_is_overwritten_and_deleted_is_true(
    tmp_path: Path, there: str, mode: str, becomes: str
) -> None:
    world = World(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    wanted, path, version = SCENES[there](world)
    options = MODES[mode] | ({"exclude": ["kept/"]} if "--exclude" in there else {})
    before, place = world.files(), world.folder / path
    look = os.lstat(place)
    rehearsed = world.check_out(wanted, is_rehearsal=True, **options)
    told = set(world.told)
    assert world.files() == before
    if "changes while" not in there:
        is_deleted = becomes.startswith("deleted") and "empty" not in there
        assert (("delete", path) in told) is is_deleted
        assert (("keep aside", path) in told) is becomes.startswith("kept")
    summary = world.check_out(wanted, **options)
    files = world.files()
    fails = "fails" in becomes
    assert summary.failed == fails
    assert rehearsed.deleted == summary.deleted
    if becomes.startswith("stays"):
        assert os.lstat(place).st_ino == look.st_ino
        assert files.get(path) == before.get(path)
    if "replaced" in becomes:
        assert files[version] == b"version"
    if becomes.startswith("kept as NAME.orig"):
        assert files[f"{path}.orig"] == b"mine"
    else:
        assert not os.path.lexists(f"{place}.orig")
    if becomes == "deleted":
        assert not os.path.lexists(place)
    if becomes.startswith("deleted, "):
        assert files.get(path) in (None, b"version")
        assert summary.deleted == 1
    assert (outside / "precious").read_bytes() == b"precious"
    assert becomes in {
        "stays",
        "replaced",
        "deleted",
        "kept as NAME.orig, replaced",
        "stays, the file fails",
        "deleted, replaced",
    }
