"""Lists a bucket's past versions, directory by directory, into a catalog, as somebody looks.

A small subtree comes whole with one page of versions. Of a larger one the directory alone is listed,
and a directory below it is shown only when something in it was current: one whose keys were all
deleted, or written later, did not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import trio

from s3mount.manifest.catalog import FILE, IMPLIED, MARKED, Listed
from s3mount.manifest.compiling import A_DIRECTORY_TOO, NO_PATH, UNSHOWN_MAX
from s3mount.manifest.versions.dating import Gaps
from s3mount.manifest.versions.versions import current_at
from s3mount.names import is_name
from s3mount.refs import Key, ObjectVersion, VersionId, VersionPage
from s3mount.tasks import first_error
from s3mount.tree.snapshot import SnapshotTree

PAGE_KEYS = 1000
MANY_PREFIXES = 50
FEW_KEYS = 100
"""With more directories in a page than MANY_PREFIXES, each is looked into with a page of so many."""
LISTS_MAX = 32
"""Listings on their way at once."""
LARGE_MAX = 10_000

Folders = dict[str, dict[str, Listed]]
"""Entries by name, of directories by their path below the top of a subtree (empty, or with ``/`` at its end)."""


class Versions(Protocol):
    """What is asked of the bucket."""

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """See ``Store.list_versions_page``."""
        ...


class SnapshotLister:
    """Fills the catalog of one bucket at ``at_ns``. Each directory is listed once, whoever asks for it.

    ``on_suspicion`` is called once when the dates of versions look wrong.
    """

    def __init__(
        self,
        store: Versions,
        tree: SnapshotTree,
        at_ns: int,
        on_suspicion: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._tree = tree
        self._catalog = tree.catalog
        self._at_ns = at_ns
        self._running: dict[tuple[int, bool], trio.Event] = {}
        self._large: dict[int, None] = {}
        self._slots = trio.CapacityLimiter(LISTS_MAX)
        self._unshown = len(self._catalog.unshown())
        self._gaps = Gaps(on_suspicion)

    # ------------------------------------------------------------------- asking

    async def list(self, number: int) -> None:
        """Make all entries of the directory known. Raises S3MountError."""
        while not self._catalog.is_listed(number):
            await self._once(number, self._list, is_whole=True)

    async def find(self, number: int, name: str) -> None:
        """Make one entry of the directory known, if there is one. Raises S3MountError.

        A directory that does not come with one page is not listed for it. With an empty ``name`` only
        that page is asked for.
        """
        while not self._catalog.is_listed(number) and number not in self._large:
            await self._once(number, self._take_whole, is_whole=False)
        if name and not self._catalog.is_listed(number):
            await self._ask_for(number, name)

    async def _once(
        self, number: int, do: Callable[[int], Awaitable[object]], *, is_whole: bool
    ) -> None:
        """Do it, or wait for whoever does it already."""
        running = self._running.get((number, is_whole))
        if running is not None:
            await running.wait()
            return
        done = self._running[number, is_whole] = trio.Event()
        try:
            await do(number)
        finally:
            del self._running[number, is_whole]
            done.set()

    async def _take_whole(self, number: int) -> bool:
        """Take everything below a directory if one page holds it, else note it as large; was it taken?"""
        pages = Pages(self, self._tree.folder(number).prefix, None, PAGE_KEYS)
        page = await pages.next()
        if page is not None and pages.is_last:
            self._add_subtree(number, page.versions)
            return True
        self._large[number] = None
        if len(self._large) > LARGE_MAX:
            del self._large[next(iter(self._large))]
        return False

    async def _list(self, number: int) -> None:
        if number not in self._large and await self._take_whole(number):
            return
        folder = self._tree.folder(number).prefix
        pages = Pages(self, folder, "/", PAGE_KEYS)
        while (page := await pages.next()) is not None:
            keys = PAGE_KEYS if len(page.prefixes) <= MANY_PREFIXES else FEW_KEYS
            with first_error():
                async with trio.open_nursery() as jobs:
                    for prefix in page.prefixes:
                        name = prefix[len(folder) : -1]
                        jobs.start_soon(self._take_directory, number, name, keys)
            self._add_files(number, folder, page.versions)
        self._catalog.set_listed([number])

    async def _take_directory(self, parent: int, name: str, keys: int) -> None:
        """Add the directory ``name`` if there was something in it, with all of it if that is little."""
        prefix = f"{self._tree.folder(parent).prefix}{name}/"
        if not is_name(name):
            self._hide(prefix, NO_PATH)
            return
        pages = Pages(self, prefix, None, keys)
        is_first = True
        while (page := await pages.next()) is not None:
            if any(True for _ in current_at(page.versions, self._at_ns)):
                (number,) = self._catalog.add(parent, [Listed(name, IMPLIED)])
                if is_first and pages.is_last:
                    self._add_subtree(number, page.versions)
                return
            is_first = False

    async def _ask_for(self, number: int, name: str) -> None:
        """Look for one entry: its key, and keys below it."""
        folder = self._tree.folder(number).prefix

        async def as_file() -> None:
            key = folder + name
            pages = Pages(self, key, None, FEW_KEYS)
            while (page := await pages.next()) is not None:
                mine = [version for version in page.versions if version.key == key]
                found = list(current_at(mine, self._at_ns))
                self._add_files(number, folder, found)
                if found or len(mine) < len(page.versions):
                    return

        with first_error():
            async with trio.open_nursery() as jobs:
                jobs.start_soon(as_file)
                jobs.start_soon(self._take_directory, number, name, PAGE_KEYS)

    # ------------------------------------------------------------------- filling

    def _add_files(self, number: int, folder: Key, versions: Iterable[ObjectVersion]) -> None:
        """Add what was current of the keys directly in a directory."""
        files: list[Listed] = []
        for version in current_at(versions, self._at_ns):
            name = version.key[len(folder) :]
            if not name:
                self._mark(number, version)
            elif not is_name(name):
                self._hide(version.key, NO_PATH)
            else:
                there = self._catalog.child(number, name)
                if there is not None and there.is_directory:
                    self._hide(version.key, A_DIRECTORY_TOO)
                else:
                    files.append(_listed(name, FILE, version))
        self._catalog.add(number, files)

    def _mark(self, number: int, version: ObjectVersion) -> None:
        """A directory has an object of its own."""
        row = self._catalog.row(number)
        if row is not None:
            self._catalog.add(row.parent, [_listed(row.name, MARKED, version)])

    def _add_subtree(self, number: int, versions: Iterable[ObjectVersion]) -> None:
        """Add everything below a directory, of which ``versions`` are all there are."""
        top = self._tree.folder(number).prefix
        folders: Folders = {"": {}}
        for version in current_at(versions, self._at_ns):
            *names, name = version.key[len(top) :].split("/")
            path = self._imply(folders, names, top)
            if path is None or (name and not is_name(name)):
                self._hide(version.key, NO_PATH)
            elif name:
                self._place(folders, path, _listed(name, FILE, version), top)
            elif names:
                above = path[: -len(names[-1]) - 1]
                self._place(folders, above, _listed(names[-1], MARKED, version), top)
            else:
                self._mark(number, version)
        numbers = {"": number}
        for path, entries in folders.items():
            for entry, child in zip(
                entries.values(),
                self._catalog.add(numbers[path], list(entries.values())),
                strict=True,
            ):
                if entry.kind != FILE:
                    numbers[f"{path}{entry.name}/"] = child
        self._catalog.set_listed(numbers.values())

    def _imply(self, folders: Folders, names: Sequence[str], top: Key) -> str | None:
        """See to it that the directory of these names is there; its path, ``None`` if it can be none."""
        path = ""
        for name in names:
            if not is_name(name):
                return None
            below = f"{path}{name}/"
            if below not in folders:
                self._place(folders, path, Listed(name, IMPLIED), top)
                folders[below] = {}
            path = below
        return path

    def _place(self, folders: Folders, path: str, entry: Listed, top: Key) -> None:
        """Put an entry where it belongs; a directory takes the place of a file."""
        entries = folders[path]
        there = entries.get(entry.name)
        if there is not None and (there.kind == FILE) != (entry.kind == FILE):
            self._hide(f"{top}{path}{entry.name}", A_DIRECTORY_TOO)
        if there is None or entry.kind >= there.kind:
            entries[entry.name] = entry

    def _hide(self, key: Key, reason: str) -> None:
        self._unshown += 1
        if self._unshown <= UNSHOWN_MAX:
            self._catalog.hide([(key, reason)])

    @property
    def unshown(self) -> int:
        """How many keys were met that have no place in the tree."""
        return self._unshown


class Pages:
    """The pages of versions below a prefix; of each key only those that may still decide."""

    def __init__(
        self, lister: SnapshotLister, prefix: str, delimiter: str | None, keys: int
    ) -> None:
        self._lister = lister
        self._prefix = prefix
        self._delimiter = delimiter
        self._keys = keys
        self._before: VersionPage | None = None
        self._decided: Key | None = None

    @property
    def is_last(self) -> bool:
        """Was the last page given?"""
        return self._before is not None and self._before.next_key_marker is None

    async def next(self) -> VersionPage | None:
        """The next page, ``None`` after the last. Raises StoreError."""
        if self.is_last:
            await trio.lowlevel.checkpoint()
            return None
        before = self._before
        async with self._lister._slots:
            page = await self._lister._store.list_versions_page(
                self._prefix,
                delimiter=self._delimiter,
                key_marker=None if before is None else before.next_key_marker,
                version_marker=None if before is None else before.next_version_marker,
                max_keys=self._keys,
            )
        self._before = page
        self._lister._gaps.note(page.versions)
        versions = tuple(each for each in page.versions if each.key != self._decided)
        if versions:
            last = versions[-1].key
            # What is newer than the time decides nothing, and may be left behind with its page.
            if any(v.key == last and v.last_modified_ns <= self._lister._at_ns for v in versions):
                self._decided = last
        return VersionPage(versions, page.prefixes, None, None)


def _listed(name: str, kind: int, version: ObjectVersion) -> Listed:
    return Listed(
        name, kind, version.version_id, version.size, version.etag, version.last_modified_ns
    )
