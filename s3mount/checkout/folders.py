"""Folders below the target, opened step by step so that no symbolic link on the way is ever followed."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from s3mount.checkout.paths import native

OPEN_MAX = 64
"""Folders kept open: those on the way to where work is done, and the last ones beside it."""

_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY


class ObstacleError(OSError):
    """Something that is no folder stands where one must be. ``path`` is relative to the target."""

    def __init__(self, path: str, is_link: bool) -> None:
        what = "a symbolic link" if is_link else "no folder"
        super().__init__(errno.ENOTDIR, f"{path} is {what}")
        self.path = path
        self.is_link = is_link


class Folders:
    """Descriptors of folders by their path relative to the target (empty: the target itself).

    A descriptor is good until the next call. To be used by one thread at a time.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        """Close all but the target's. Repeatable."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def find(self, path: str, *, make: bool = False) -> int | None:
        """The folder at ``path``, made on the way if told so; ``None`` where there is none.

        Raises ObstacleError, and OSError for what cannot be opened or made.
        """
        if not path:
            return self._root
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        parent, _, name = path.rpartition("/")
        above = self.find(parent, make=make)
        if above is None:
            return None
        found = self._descend(above, name, path, make)
        if found is not None:
            self._open[path] = found
            if len(self._open) > OPEN_MAX:
                os.close(self._open.popitem(last=False)[1])
        return found

    def _descend(self, above: int, name: str, path: str, make: bool) -> int | None:
        try:
            return os.open(native(name), _FLAGS, dir_fd=above)
        except FileNotFoundError:
            if not make:
                return None
        except NotADirectoryError:
            raise ObstacleError(path, _is_link(name, above)) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ObstacleError(path, True) from None
            raise
        try:
            os.mkdir(native(name), dir_fd=above)
        except FileExistsError:
            if _is_link(name, above):
                raise ObstacleError(path, True) from None
        return os.open(native(name), _FLAGS, dir_fd=above)

    def forget(self, path: str) -> None:
        """Let go of a folder that is about to be removed, and of what lies below it."""
        below = f"{path}/"
        for known in [one for one in self._open if one == path or one.startswith(below)]:
            os.close(self._open.pop(known))


def _is_link(name: str, above: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(native(name), dir_fd=above, follow_symlinks=False).st_mode)
    except OSError:
        return False
