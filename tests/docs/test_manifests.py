"""The table in docs/MANIFESTS.md of what a restore deletes, row by row."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3mount.cli.commands import main
from s3mount.manifest.formats.reading import read_entries
from s3mount.manifest.formats.writing import ManifestWriter
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scope
from s3mount.refs import ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from tests import manifest_access

PAGE = (Path(__file__).parents[2] / "docs" / "MANIFESTS.md").read_text(encoding="utf-8")
BUCKET = "my-bucket"
ALL = f"s3://{BUCKET}"
THEN = ("data/a", "data/b/c", "logs/1")
LATER = ("data/new", "data2/new", "logs/new")


def rows() -> list[tuple[str, str, str]]:
    table = PAGE.partition("| MANIFEST | options | deletes |\n")[2].partition("\n\n")[0]
    found = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table.splitlines()]
    return [(about, options, deleted) for about, options, deleted in found[1:]]


class World:
    """The bucket of the example, in memory, and the manifests that the table speaks of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.store = MemoryStore(BUCKET, versioning="enabled")
        manifest_access.use(self.store, monkeypatch)
        self.put(THEN)

    def put(self, keys: tuple[str, ...], body: bytes = b"1") -> None:
        async def put() -> None:
            for key in keys:
                await self.store.put(key, body, ObjectHeaders())

        trio.run(put)

    def create(self, source: str, output_format: str = "csv") -> Path:
        path = self.folder / f"{output_format}-{source.count('/')}{source[-1]}"
        command = ["manifest", "create", source, "-o", str(path), "--format", output_format, "-q"]
        assert main(command) == 0
        return path

    def lines(self, path: Path, keep: Callable[[str], bool]) -> Path:
        lines = path.read_bytes().decode().splitlines(keepends=True)
        path.write_text("".join(filter(keep, lines)), newline="")
        return path

    def made(self, about: str) -> list[Path]:
        """The manifests that a row's first cell means; all kinds of such are meant to act alike."""
        whole = f"of `{ALL}`"
        if found := re.fullmatch(r"of `(\S+)`", about):
            return [self.create(found[1])]
        if about.startswith(f"{whole}, a line"):
            return [self.lines(self.create(ALL), lambda line: "data/b/c" not in line)]
        if about.startswith(f"{whole}, in it as"):
            return [self.create(ALL)]
        if about.endswith("joined"):
            first, second = (self.create(f"{ALL}/{name}") for name in ("data", "logs"))
            added = second.read_text().partition("\n")[2]
            first.write_text(first.read_text() + added)
            return [first]
        if about == "by `wait --manifest`":
            return [self.put_by_a_mount()]
        assert about.startswith("`legacy`, `batch`, S3 Inventory, or by hand: `data/a` alone")
        cut = [
            self.lines(self.create(ALL, name), lambda line: "data/a" in line)
            for name in ("legacy", "batch")
        ]
        (entry,) = read_entries(cut[1])
        by_hand = self.folder / "by-hand.csv"
        by_hand.write_text(f"key,version_id,size\n{entry.key},{entry.version_id},1\n")
        return [*cut, self.inventory(entry), by_hand]

    def put_by_a_mount(self) -> Path:
        path = self.folder / "put.csv"
        (entry,) = (each for each in read_entries(self.create(ALL)) if each.key == "data/a")
        with open(path, "wb") as file:
            writer = ManifestWriter(file, scope=Scope(BUCKET, "", 0, is_whole=False))
            writer.write([entry])
            writer.finish()
        return path

    def inventory(self, entry: Entry) -> Path:
        path = self.folder / "manifest.json"
        with gzip.open(self.folder / "data.csv.gz", "wt") as file:
            file.write(f'"{BUCKET}","{entry.key}","{entry.version_id}"\n')
        about = {
            "sourceBucket": BUCKET,
            "fileFormat": "CSV",
            "fileSchema": "Bucket, Key, VersionId",
            "files": [{"key": "x/data.csv.gz"}],
        }
        path.write_text(json.dumps(about))
        return path


def test_the_table_is_there() -> None:
    assert len(rows()) > 15


@pytest.mark.parametrize(("about", "options", "deleted"), rows())
def test_a_restore_deletes_what_the_table_says(
    about: str, options: str, deleted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    paths = world.made(about)
    world.put(LATER)
    sources = [str(path) for path in paths]
    if "in it as" in about:
        world.put(("data/new",), paths[0].read_bytes())
        sources = [f"{ALL}/data/new", *sources]
    given = [] if options == "none" else shlex.split(options.strip("`"))
    expected = set() if deleted in ("nothing", "refused") else set(re.findall(r"`(\S+)`", deleted))
    there = world.store.contents().keys()
    for source in sources:
        command = ["manifest", "restore", source, "--bucket", BUCKET, "--yes", *given]
        status = main(command)
        assert status == (2 if deleted == "refused" else 0)
        gone = there - world.store.contents().keys()
        assert gone == expected, source
        world.put(tuple(gone))
