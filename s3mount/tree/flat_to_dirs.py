"""Groups keys that come in order into the listings of the directories that they imply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from s3mount.refs import Key, ObjectInfo
from s3mount.tree.listing import Listing
from s3mount.tree.names import is_name

T = TypeVar("T")


@dataclass(slots=True)
class Opened(Generic[T]):
    """A directory whose keys are just coming; ``origin`` is of the page in which they began."""

    prefix: Key
    origin: T
    listing: Listing = field(default_factory=Listing)
    keys: int = 0


class FlatToDirs(Generic[T]):
    """Takes the keys below ``base``, ascending, and gives out every directory that is complete.

    The directory ``base`` itself is never given out: where its keys begin or end is not known here. Each
    listing is what one with a delimiter would have been.
    """

    def __init__(self, base: Key) -> None:
        self._base = base
        self._open: list[Opened[T]] = []
        self._skipped = ""

    def add(self, info: ObjectInfo, origin: T) -> list[Opened[T]]:
        """Take the next key; the directories that it shows to be complete, inner ones first."""
        key = info.key
        done: list[Opened[T]] = []
        while self._open and not key.startswith(self._open[-1].prefix):
            done.append(self._close())
        if self._skipped and key.startswith(self._skipped):
            return done
        self._skipped = ""
        top = self._open[-1] if self._open else None
        start = len(top.prefix) if top is not None else len(self._base)
        cut = key.find("/", start)
        while cut >= 0:
            name = key[start:cut]
            prefix = key[: cut + 1]
            if not is_name(name):
                self._skipped = prefix
                if top is not None:
                    top.listing.ignored.append(prefix)
                return done
            if top is not None:
                top.listing.directories.add(name)
            top = Opened(prefix, origin)
            self._open.append(top)
            start = cut + 1
            cut = key.find("/", start)
        if top is None:
            return done
        top.keys += 1
        name = key[start:]
        if not name:
            top.listing.marker = info
        elif is_name(name):
            top.listing.files[name] = info
        else:
            top.listing.ignored.append(key)
        return done

    def finish(self) -> list[Opened[T]]:
        """No more keys follow: all directories that are left, inner ones first."""
        return [self._close() for _ in range(len(self._open))]

    def _close(self) -> Opened[T]:
        done = self._open.pop()
        done.listing.drop_shadowed()
        return done
