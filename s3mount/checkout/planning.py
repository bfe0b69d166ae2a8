"""What there is to do: each entry of the manifest held against what lies in the folder. Only looks; blocks."""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from s3mount.checkout.digests import DigestIndex, Row
from s3mount.checkout.folder_state import Notes
from s3mount.checkout.folders import Folders, ObstacleError
from s3mount.checkout.paths import (
    ASIDE,
    HIDDEN,
    Folding,
    Spellings,
    as_text,
    native,
    permissions,
    refusal,
)
from s3mount.checkout.summary import Failures
from s3mount.checkout.target_folder import Target
from s3mount.manifest.model import Entry, is_same_line
from s3mount.patterns import PathFilter


class Kind(enum.Enum):
    """What a step does."""

    FETCH = "fetch"
    """Download: nothing is there, or surely something else."""
    CHECK = "check"
    """Something of the right size is there, of which nothing or something older is remembered."""
    ADJUST = "adjust"
    """The bytes are right, the mode or the time is not."""
    UNPROVEN = "unproven"
    """It is as it came from the store, which nothing proves, and that is accepted."""
    FOLDER = "folder"
    """A folder of its own: a key that ends with a slash."""


class Doomed(NamedTuple):
    """Something in the folder that the manifest does not have, to be removed."""

    path: str
    is_folder: bool


class Step(NamedTuple):
    """One thing to do about one entry.

    ``row`` is what is remembered of the file there; ``obstacle`` must go first. ``seen`` is what was there,
    ``edited`` what a checkout put there, where it may have been edited since.
    """

    kind: Kind
    path: str
    entry: Entry
    row: Row | None = None
    obstacle: Doomed | None = None
    seen: os.stat_result | None = None
    edited: Row | None = None

    @property
    def is_edited(self) -> bool | None:
        """Was the file edited here since it was checked out? ``None``: only its bytes tell."""
        if self.edited is None or self.seen is None:
            return False
        if not stat.S_ISREG(self.seen.st_mode) or self.seen.st_size != self.edited.size:
            return True
        return None


class Seen(msgspec.Struct):
    """What planning counted so far."""

    files: int = 0
    size_bytes: int = 0
    right_files: int = 0
    right_bytes: int = 0
    left_out: int = 0


class Planner:
    """Goes once through entries in the order of ``Ordered``.

    ``steps`` yields what is to be done; what is right already is only counted. ``refused`` and ``extras``
    (what the manifest does not have) fill meanwhile.
    """

    def __init__(
        self,
        target: Target,
        index: DigestIndex | None,
        selection: PathFilter,
        *,
        with_buckets: bool,
        delete: bool,
        accept_unproven: bool,
        folding: Callable[[], Folding],
        notes: Notes,
    ) -> None:
        self.seen = Seen()
        self.refused = Failures()
        self.extras: list[Doomed] = []
        self._notes = notes
        self._target = target
        self._index = index
        self._selection = selection
        self._with_buckets = with_buckets
        self._delete = delete
        self._accept_unproven = accept_unproven
        self._spellings = Spellings(folding)
        self._folders = Folders(target.root) if target.root is not None else None
        self._folder = ""
        self._descriptor: int | None = target.root
        self._blocked: str | None = None
        self._obstacle: Doomed | None = None
        self._held: list[tuple[str, Entry, Step | None]] = []
        self._twice: str | None = None
        self._wanted: list[tuple[str, set[str]]] = [("", {HIDDEN})]

    def close(self) -> None:
        """Close what is open. Repeatable."""
        if self._folders is not None:
            self._folders.close()

    def steps(self, entries: Iterable[Entry]) -> Iterator[Step]:
        """What is to be done for ``entries``. Raises what they raise, and LocalDiskError."""
        for entry in entries:
            path = f"{entry.bucket}/{entry.key}" if self._with_buckets else entry.key
            if not self._selection.takes_all and not self._selection.takes(path):
                self.seen.left_out += 1
                continue
            why = refusal(path, self._target.name_bytes_max)
            if why is not None:
                self._refuse(path, entry, why)
                continue
            if self._held and not path.startswith(self._held[-1][0]):
                yield from self._release(path)
            if self._held and self._meets_held(path, entry):
                continue
            if path == self._twice:
                continue
            step = self._look_at(path, entry)
            if isinstance(step, str):
                self._refuse(path, entry, step)
            elif not path.endswith("/"):
                self._held.append((path, entry, step))
            elif step is not None:
                yield step
        yield from self._release(None)
        if self._delete:
            self._leave("", top_too=True)

    def _refuse(self, path: str, entry: Entry, why: str) -> None:
        self.seen.files += 1
        self.seen.size_bytes += entry.size or 0
        self.refused.add(path, entry, why)

    # Names that are a file and a folder, or twice there: known when the next paths are.

    def _release(self, path: str | None) -> Iterator[Step]:
        """Let go of what no later path can collide with."""
        held = self._held
        while held:
            # Between a file's path and those below a folder of that name only longer ones come.
            if path is not None and path.startswith(held[-1][0]):
                return
            _, entry, step = held.pop()
            self.seen.files += 1
            self.seen.size_bytes += entry.size or 0
            if step is not None:
                yield step
            else:
                self.seen.right_files += 1
                self.seen.right_bytes += entry.size or 0

    def _meets_held(self, path: str, entry: Entry) -> bool:
        """Does ``path`` collide with held ones? Those that must give way are refused; ``True`` if it does itself."""
        for place in range(len(self._held) - 1, -1, -1):
            other, held_entry, _ = self._held[place]
            if path.startswith(other + "/"):
                del self._held[place]
                self._refuse(other, held_entry, "it is also the name of a folder")
            elif path == other and is_same_line(entry, held_entry):
                return True
            elif path == other:
                del self._held[place]
                one, two = (each.version_id or each.etag for each in (held_entry, entry))
                self._refuse(
                    other, held_entry, f"the manifest names two versions of it: {one} and {two}"
                )
                self._twice = path
                return True
        return False

    # What is there.

    def _look_at(self, path: str, entry: Entry) -> Step | str | None:
        """The step for one entry; ``None`` where all is right already, or why it is refused."""
        if not entry.etag and entry.version_id in (None, "null"):
            self._notes.give_up()
        is_folder = path.endswith("/")
        plain = path[:-1] if is_folder else path
        folder, _, name = plain.rpartition("/")
        if folder != self._folder:
            self._enter(folder)
        if self._delete:
            self._wanted[-1][1].add(name)
        clash = self._spellings.clash(plain)
        if clash is not None:
            return f"this file system takes it for {clash!r}"
        if self._blocked is not None:
            return self._blocked
        if is_folder:
            return self._look_at_folder(path, entry, name)
        if self._descriptor is None:
            return Step(Kind.FETCH, path, entry, None, self._obstacle)
        try:
            found = os.stat(native(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return Step(Kind.FETCH, path, entry)
        except OSError as error:
            return str(error.strerror)
        return self._hold_against(path, entry, found)

    def _look_at_folder(self, path: str, entry: Entry, name: str) -> Step | str | None:
        if entry.size:
            return "it is a folder's name and has bytes, which no folder can hold"
        obstacle = self._obstacle
        if self._descriptor is not None:
            try:
                found = os.stat(native(name), dir_fd=self._descriptor, follow_symlinks=False)
            except OSError:
                return Step(Kind.FOLDER, path, entry)
            if stat.S_ISDIR(found.st_mode):
                self._notes.folder(path[:-1])
                return None
            if not self._may_go(path[:-1], found):
                return "something that is no folder is in the way"
            obstacle = Doomed(path[:-1], False)
        return Step(Kind.FOLDER, path, entry, None, obstacle)

    def _hold_against(self, path: str, entry: Entry, found: os.stat_result) -> Step | str | None:
        mode = found.st_mode
        if stat.S_ISDIR(mode):
            if not self._may_go(path, found):
                return "a folder is in the way"
            return Step(Kind.FETCH, path, entry, None, Doomed(path, True))
        row = self._index.find(path) if self._index is not None else None
        edited = row if row is not None and row.is_checkouts and not row.is_of(found) else None
        if not stat.S_ISREG(mode) or (entry.size is not None and entry.size != found.st_size):
            return Step(Kind.FETCH, path, entry, seen=found, edited=edited)
        if row is not None and not row.is_proven and not self._accept_unproven:
            # It tells what was put there, and not that it is right.
            row = row._replace(etag="", version_id=None)
        if row is None or not row.is_of(found):
            return Step(Kind.CHECK, path, entry, row, None, found, edited)
        if not row.holds(entry):
            sure = entry.etag and entry.etag == row.unlike
            kind = Kind.FETCH if sure else Kind.CHECK
            return Step(kind, path, entry, row, None, found, edited)
        if wants_adjusting(entry, found):
            return Step(Kind.ADJUST, path, entry, row)
        if not row.is_proven:
            return Step(Kind.UNPROVEN, path, entry, row)
        self._notes.file(path, found)
        return None

    def _may_go(self, path: str, found: os.stat_result) -> bool:
        """May what is in the way be removed? Symbolic links never: somebody put them there on purpose."""
        if stat.S_ISLNK(found.st_mode) or not self._delete:
            return False
        return self._selection.takes_all or self._selection.takes(path)

    def _enter(self, folder: str) -> None:
        """From now on entries are in ``folder``."""
        if self._delete:
            self._leave(folder)
        self._folder = folder
        self._blocked = self._descriptor = self._obstacle = None
        if self._folders is None:
            return
        try:
            self._descriptor = self._folders.find(folder)
        except ObstacleError as error:
            self._meet_obstacle(error)
        except OSError as error:
            self._blocked = f"its folder cannot be opened: {error.strerror}"

    def _meet_obstacle(self, error: ObstacleError) -> None:
        if error.is_link:
            self._blocked = f"{error.path} on its way is a symbolic link"
        elif not self._delete or not self._selection.takes(error.path):
            self._blocked = f"{error.path} on its way is no folder"
        else:
            self._obstacle = Doomed(error.path, False)

    # What is there and not in the manifest.

    def _leave(self, folder: str, *, top_too: bool = False) -> None:
        """Finish the folders that ``folder`` does not lie in, and begin those that it does."""
        stack = self._wanted
        while stack[-1][0] and not _is_within(folder, stack[-1][0]):
            self._find_extras(*stack.pop())
        if top_too:
            self._find_extras(*stack[-1])
            return
        top = stack[-1][0]
        rest = folder[len(top) :].lstrip("/") if top else folder
        for name in rest.split("/") if rest else ():
            stack[-1][1].add(name)
            stack.append((f"{stack[-1][0]}/{name}" if stack[-1][0] else name, set()))

    def _find_extras(self, folder: str, wanted: set[str]) -> None:
        if self._folders is None:
            return
        try:
            where = self._folders.find(folder)
        except OSError:
            # A link or a file: in nobody's way unless entries are below, which are refused or make it go.
            return
        if where is None:
            return
        device = os.fstat(where).st_dev
        for found in os.scandir(where):
            name = as_text(found.name)
            if name in wanted or _is_aside_of(name, wanted):
                continue
            path = f"{folder}/{name}" if folder else name
            is_folder = found.is_dir(follow_symlinks=False)
            if is_folder and found.stat(follow_symlinks=False).st_dev != device:
                continue
            if is_folder or self._selection.takes_all or self._selection.takes(path):
                self.extras.append(Doomed(path, is_folder))


def _is_aside_of(name: str, wanted: set[str]) -> bool:
    """Is it what was kept aside of a file that is wanted?"""
    aside = ASIDE.fullmatch(name)
    return aside is not None and aside[1] in wanted


def wants_adjusting(entry: Entry, found: os.stat_result) -> bool:
    """Does the manifest tell another mode or time than the file has?"""
    if entry.mtime_ns not in (None, found.st_mtime_ns):
        return True
    return permissions(entry.mode) not in (None, found.st_mode & 0o777)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
