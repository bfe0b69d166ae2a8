"""Where directories were that the kernel still knows by number, after what was listed of them was dropped.

A process may stand in such a directory: what it names from there comes with the number alone, and no path
that could be looked up again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

PLACES_MAX = 100_000
"""About 35 MB; beyond, the oldest places are forgotten, and who stands there is told ESTALE."""


class Place(NamedTuple):
    """A directory's place: the inode of the one above it, its name there, and the kernel's references to it."""

    parent: int
    name: str
    lookups: int


class DroppedDirectories:
    """At most ``places_max`` places, by inode and by the place itself."""

    def __init__(self, places_max: int = PLACES_MAX) -> None:
        self._places_max = places_max
        self._places: OrderedDict[int, Place] = OrderedDict()
        self._inodes: dict[tuple[int, str], int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def remember(self, inode: int, place: Place) -> None:
        """Keep the place of a directory that is being dropped; what was kept for the same place gives way."""
        self.take_at(place.parent, place.name)
        self._places[inode] = place
        self._inodes[place.parent, place.name] = inode
        if len(self._places) > self._places_max:
            self.take(next(iter(self._places)))

    def take(self, inode: int) -> Place | None:
        """The place of this inode, which is kept no longer."""
        place = self._places.pop(inode, None)
        if place is not None:
            del self._inodes[place.parent, place.name]
        return place

    def take_at(self, parent: int, name: str) -> tuple[int, int] | None:
        """The inode that was at this place, and the kernel's references; it is kept no longer."""
        inode = self._inodes.get((parent, name))
        if inode is None:
            return None
        place = self.take(inode)
        return None if place is None else (inode, place.lookups)

    def forget(self, inode: int, count: int) -> None:
        """The kernel dropped ``count`` references."""
        place = self._places.get(inode)
        if place is None:
            return
        if place.lookups <= count:
            self.take(inode)
        else:
            self._places[inode] = place._replace(lookups=place.lookups - count)
