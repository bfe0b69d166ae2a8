"""Taking away what the manifest does not have, without following a symbolic link or leaving the file system."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from s3mount.checkout.folders import Folders
from s3mount.checkout.paths import as_text, native, split
from s3mount.checkout.planning import Doomed
from s3mount.patterns import PathFilter


class Remover:
    """Removes files and folders below a target, as far as the selection takes them.

    A folder goes when it is taken itself, or when something in it was removed, and nothing is left in it.
    ``removed`` counts files. With ``is_rehearsal`` it only counts, and tells ``tell``.
    """

    def __init__(
        self,
        folders: Folders,
        selection: PathFilter,
        *,
        is_rehearsal: bool,
        tell: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self._folders = folders
        self._tell = tell
        self._selection = selection
        self._is_rehearsal = is_rehearsal
        self.removed = 0

    def remove(self, doomed: Doomed) -> None:
        """Remove it; no error where it is gone, or a folder where a file was. Raises OSError."""
        folder, name = split(doomed.path)
        where = self._folders.find(folder)
        if where is None:
            return
        try:
            found = os.stat(native(name), dir_fd=where, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            if doomed.is_folder and found.st_dev == os.fstat(where).st_dev:
                self._remove_tree(doomed.path, name, where)
        else:
            self._unlink(doomed.path, name, where, found.st_size)

    def _unlink(self, path: str, name: str, where: int, size_bytes: int) -> None:
        if not self._is_rehearsal:
            os.unlink(native(name), dir_fd=where)
        elif self._tell is not None:
            self._tell("delete", path, size_bytes)
        self.removed += 1

    def _remove_tree(self, path: str, name: str, where: int) -> None:
        self._folders.forget(path)
        before = self.removed
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY
        inside = os.open(native(name), flags, dir_fd=where)
        try:
            device = os.fstat(inside).st_dev
            for each in map(as_text, os.listdir(inside)):
                below = f"{path}/{each}"
                found = os.stat(native(each), dir_fd=inside, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    if self._selection.takes_all or self._selection.takes(below):
                        self._unlink(below, each, inside, found.st_size)
                elif found.st_dev == device:
                    self._remove_tree(below, each, inside)
        finally:
            os.close(inside)
        is_meant = self._selection.takes(f"{path}/") or self.removed > before
        if self._is_rehearsal or not is_meant:
            return
        try:
            os.rmdir(native(name), dir_fd=where)
        except OSError as error:
            # What was left out, or lies on another file system, stays, and its folder with it.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
