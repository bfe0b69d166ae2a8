"""What a folder must hold: the plain model that the simulation compares S3 and the mount with."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import dataclass, field


@dataclass
class File:
    """One file. ``stable`` is its content when it was last closed or synced, ``since`` all later ones.

    After a crash every byte is that of ``stable`` or of one of ``since``, as on a local disk. ``is_moved``: S3 may
    have it under an earlier name.
    """

    now: bytes = b""
    stable: bytes = b""
    since: list[bytes] = field(default_factory=list)
    mode: int = 0o644
    stable_mode: int = 0o644
    is_link: bool = False
    is_moved: bool = False

    def became(self, data: bytes) -> None:
        """Its content changed, in memory of the mount only."""
        self.now = data
        self.since.append(data)

    def settle(self) -> None:
        """It was closed or synced: it must survive as it is now."""
        self.stable, self.since = self.now, []
        self.stable_mode = self.mode

    def may_be(self, data: bytes) -> bool:
        """Is ``data`` a content that it may have after a crash?"""
        if not self.since:
            return data == self.stable
        states = [self.stable, *self.since]
        if len(data) not in {len(state) for state in states}:
            return False
        if data in states:
            return True
        for at, byte in enumerate(data):
            allowed = {state[at] if at < len(state) else 0 for state in states}
            if byte not in allowed:
                return False
        return True


class Tree:
    """Files and directories below one top directory (itself one of ``folders``), by path."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.folders: set[str] = {top}
        self.files: dict[str, File] = {}

    def copied(self) -> Tree:
        """Another tree that is equal and shares nothing."""
        return copy.deepcopy(self)

    def names(self) -> list[str]:
        """All paths, files and folders."""
        return sorted([*self.folders, *self.files])

    def is_empty(self, folder: str) -> bool:
        """Has the folder no entry?"""
        return not any(path.startswith(f"{folder}/") for path in self.names())

    def rename(self, old: str, new: str) -> None:
        """Move a file or a folder, over what is there."""
        if old == new:
            return
        if old in self.files:
            self.files[new] = self.files.pop(old)
            self.files[new].is_moved = True
            return
        self.folders.discard(new)
        for path in [path for path in self.folders if path == old or path.startswith(f"{old}/")]:
            self.folders.discard(path)
            self.folders.add(new + path[len(old) :])
        for path in [path for path in self.files if path.startswith(f"{old}/")]:
            file = self.files[new + path[len(old) :]] = self.files.pop(path)
            file.is_moved = True

    def settle(self) -> None:
        """Everything must survive as it is now."""
        for file in self.files.values():
            file.settle()

    # ------------------------------------------------------------- comparing

    def differences(
        self, found: dict[str, bytes | None], *, after_crash: bool = False
    ) -> list[str]:
        """How ``found`` (content by path, ``None`` for a folder) differs from what must be there."""
        wrong = []
        for path in self.folders:
            if path not in found:
                wrong.append(f"folder {path} is missing")
            elif found[path] is not None:
                wrong.append(f"folder {path} is a file")
        for path, file in self.files.items():
            data = found.get(path)
            if data is None:
                wrong.append(
                    f"file {path} is missing" if path not in found else f"{path} is a folder"
                )
            elif not (file.may_be(data) if after_crash else data == file.now):
                wrong.append(
                    f"{path} is {brief(data)}, must be {brief(file.now)}"
                    + _states(file, after_crash)
                )
        wrong += [
            f"{path} is there but must not be"
            for path in found
            if path not in self.folders and path not in self.files
        ]
        return sorted(wrong)

    def adopt(self, found: dict[str, bytes | None]) -> None:
        """After a crash: what was found, which may be so, is how it is."""
        for path, file in self.files.items():
            data = found[path]
            assert data is not None
            file.now = data
            file.settle()


def _states(file: File, after_crash: bool) -> str:
    if not after_crash:
        return ""
    others = ", ".join(brief(state) for state in [file.stable, *file.since])
    return f" (or of {others})"


def brief(data: bytes) -> str:
    """Content in a few characters: its length, and its bytes as runs."""
    runs = list(itertools.islice(re.finditer(rb"(?s)(.)\1*", data), 13))
    shown = " ".join(f"{run[1].hex()}*{len(run[0])}" for run in runs[:12])
    return f"<{len(data)}: {shown}{' ...' if len(runs) > 12 else ''}>"


def as_paths(objects: dict[str, bytes], top: str) -> dict[str, bytes | None]:
    """Objects below ``top`` as paths: a marker is a folder."""
    return {
        key.rstrip("/"): None if key.endswith("/") else data
        for key, data in objects.items()
        if key.startswith(f"{top}/")
    }
