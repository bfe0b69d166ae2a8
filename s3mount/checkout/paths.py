"""Which place below the folder a key has, and which keys have none. Pure; no disk is looked at."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable

HIDDEN = ".s3mount-checkout"
"""The folder's own hidden folder, for files that are not whole yet; gone when nothing is in it."""
ASIDE = re.compile(r"(.+)\.orig(?:\.[0-9]+)?", re.DOTALL)
"""The name under which a file that was edited here is kept, beside the version that took its place."""
NAME_BYTES_MAX = 255
"""NAME_MAX of Linux's file systems; the target tells its own."""

_NO_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|\0")
_LONG = re.compile(r"[^/]{60}")
"""Only a name of at least so many characters can be longer than 255 bytes in UTF-8."""


def refusal(path: str, name_bytes_max: int = NAME_BYTES_MAX) -> str | None:
    """Why ``path`` (a key, or a bucket and a key) can be no file or folder below the target, or ``None``.

    A ``/`` at its end means a folder.
    """
    plain = path[:-1] if path.endswith("/") else path
    if _NO_NAME.search(plain):
        return _why_no_name(plain)
    if plain.startswith(HIDDEN) and plain.partition("/")[0] == HIDDEN:
        return f"{HIDDEN} is where checkout keeps what is not whole yet"
    try:
        plain.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    shortest = min(name_bytes_max, 240)
    if (shortest < 240 or _LONG.search(plain)) and any(
        len(name.encode()) > name_bytes_max for name in plain.split("/")
    ):
        return f"a name in it is longer than the {name_bytes_max} bytes that this file system takes"
    return None


def _why_no_name(plain: str) -> str:
    if "\0" in plain:
        return "a file name cannot hold a NUL"
    names = plain.split("/")
    if ".." in names:
        return "'..' in it would lead out of the folder"
    if "." in names:
        return "'.' cannot be the name of a file"
    if plain.startswith("/"):
        return "it begins with '/', so that it would lead out of the folder"
    return "it has an empty name between two '/'"


def split(path: str) -> tuple[str, str]:
    """Folder (empty for the top) and name."""
    folder, _, name = path.rpartition("/")
    return folder, name


def native(name: str) -> str | bytes:
    """The name for a system call: S3's keys are UTF-8, whatever this process's locale says."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape")


def as_text(name: str) -> str:
    """A name from the disk (decoded by Python) as keys are: text that was UTF-8, else with surrogates."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "surrogateescape")


class Folding:
    """How a file system takes two names for one: by case, by the normal form of letters, or both."""

    def __init__(self, *, case: bool, form: bool) -> None:
        self.case = case
        self.form = form

    def fold(self, name: str) -> str:
        """Equal for two names that are one file there."""
        if name.isascii():
            return name.lower() if self.case else name
        if self.form:
            name = unicodedata.normalize("NFD", name)
        if self.case:
            name = name.casefold()
            if self.form:
                name = unicodedata.normalize("NFD", name)
        return name


STRONGEST = Folding(case=True, form=True)


class Spellings:
    """Names seen so far, folder by folder in the order of paths; tells which would be one file.

    ``really`` finds out, once it matters, how the file system folds names: most do not at all.
    """

    def __init__(self, really: Callable[[], Folding]) -> None:
        self._ask = really
        self._really: Folding | None = None
        self._folder = ""
        self._seen: list[dict[str, tuple[str, ...]]] = [{}]

    def clash(self, path: str) -> str | None:
        """The path with another spelling that was there first and is the same file, or ``None``.

        Paths come so that all below one folder are in a row.
        """
        if self._really is not None and not (self._really.case or self._really.form):
            return None
        folder, name = split(path.removesuffix("/"))
        if folder != self._folder and (found := self._enter(folder)) is not None:
            return found
        return self._meet(folder, name)

    def _enter(self, folder: str) -> str | None:
        before = self._folder.split("/") if self._folder else []
        names = folder.split("/") if folder else []
        same = 0
        while same < min(len(before), len(names)) and before[same] == names[same]:
            same += 1
        del self._seen[same + 1 :]
        self._folder = "/".join(names[:same])
        for name in names[same:]:
            if (found := self._meet(self._folder, name)) is not None:
                return found
            self._folder = f"{self._folder}/{name}" if self._folder else name
            self._seen.append({})
        return None

    def _meet(self, folder: str, name: str) -> str | None:
        seen = self._seen[-1]
        folded = STRONGEST.fold(name)
        others = seen.get(folded)
        if others is None:
            seen[folded] = (name,)
            return None
        if name in others:
            return None
        if self._really is None:
            self._really = self._ask()
        mine = self._really.fold(name)
        for other in others:
            if self._really.fold(other) == mine:
                return f"{folder}/{other}" if folder else other
        seen[folded] = (*others, name)
        return None


def permissions(mode: int | None) -> int | None:
    """The permission bits that a stored mode gives a file; ``None`` where it is another thing's or not told.

    Set-id bits are not among them: nobody asked for programs that run as somebody else.
    """
    if mode is None or stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return None
    return mode & 0o777
