"""What S3 lists directly below a prefix, as names a directory can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from s3mount.refs import Key, ListPage, ObjectInfo
from s3mount.s3.store import Store
from s3mount.tree.failing import first_error
from s3mount.tree.names import is_name


@dataclass(slots=True)
class Listing:
    """One directory as S3 has it.

    ``files`` and ``directories`` are keyed by name; a name that is both counts as a directory, and its
    object is in ``ignored`` along with every key that can be no path. ``marker`` is the directory's own object.
    """

    files: dict[str, ObjectInfo] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    marker: ObjectInfo | None = None
    ignored: list[Key] = field(default_factory=list)
    pages: int = 0

    def drop_shadowed(self) -> None:
        """Of a name that is both, only the directory is shown."""
        for name in self.directories & self.files.keys():
            self.ignored.append(self.files.pop(name).key)


DIGITS = frozenset("0123456789")
HEX = frozenset("abcdef")
PLACES_MAX = 24
"""Characters of a name that are looked at to guess where others part."""
STREAMS_MAX = 8
"""Pages of one large directory that are on their way at once."""
PAGES_ALONE = 4
"""So many pages come one after the other, so that the requests that ranges waste are few beside them."""
SPLITS_MAX = 6
"""Ranges that the rest is parted into. Each may waste a request: its last page reaches over its end."""


async def list_directory(store: Store, prefix: Key, *, page_keys: int = 1000) -> Listing:
    """List everything directly below ``prefix`` (empty, or ending with ``/``). Raises StoreError.

    The first pages come one by one; where more follow, the rest of the names is parted into ranges that are
    listed side by side.
    """
    listing = Listing()
    token = None
    while True:
        page = await store.list_page(prefix, delimiter="/", token=token, max_keys=page_keys)
        _take_in(listing, prefix, page, None)
        token = page.next_token
        if token is None or listing.pages == PAGES_ALONE:
            break
    if token is not None:
        await _list_rest(store, prefix, page, listing, page_keys)
    listing.drop_shadowed()
    return listing


async def _list_rest(
    store: Store, prefix: Key, last: ListPage, listing: Listing, page_keys: int
) -> None:
    """All behind the ``last`` page so far, by ranges that end where the next one begins."""
    names = [info.key[len(prefix) :] for info in last.objects]
    names = sorted([*names, *(common[len(prefix) : -1] for common in last.prefixes)])
    keys = [info.key for info in last.objects]
    # A store that does not list in order (S3 Express) cannot be asked for ranges.
    is_ordered = keys == sorted(keys)
    points = []
    if is_ordered:
        behind = max([*keys[-1:], *last.prefixes[-1:]])
        points = [prefix + point for point in split_points(names) if prefix + point > behind]
    stops: list[Key | None] = [*points, None]
    waiting = list(zip([None, *points], stops, strict=True))
    waiting.reverse()

    async def work() -> None:
        while waiting:
            after, stop = waiting.pop()
            token = last.next_token if after is None else None
            while True:
                page = await store.list_page(
                    prefix,
                    delimiter="/",
                    token=token,
                    start_after=None if token else after,
                    max_keys=page_keys,
                )
                is_over = _take_in(listing, prefix, page, stop)
                token = page.next_token
                if is_over or token is None:
                    break

    with first_error():
        async with trio.open_nursery() as nursery:
            for _ in range(min(STREAMS_MAX, len(waiting))):
                nursery.start_soon(work)


def _take_in(listing: Listing, prefix: Key, page: ListPage, stop: Key | None) -> bool:
    """Add a page's entries up to ``stop``, inclusive; does the page reach over it?"""
    listing.pages += 1
    start = len(prefix)
    is_over = False
    for common in page.prefixes:
        name = common[start:-1]
        if stop is not None and common > stop:
            is_over = True
        elif is_name(name):
            listing.directories.add(name)
        elif common not in listing.ignored:
            listing.ignored.append(common)
    for info in page.objects:
        name = info.key[start:]
        if stop is not None and info.key > stop:
            is_over = True
        elif not name:
            listing.marker = info
        elif is_name(name):
            listing.files[name] = info
        else:
            listing.ignored.append(info.key)
    return is_over


def split_points(names: Sequence[str]) -> list[str]:
    """Where names that follow these (in order) may be parted: guesses, of which any may turn out to part nothing.

    One character of the last name is raised, to those that its place was seen to have or is likely to have.

    >>> split_points([f"f{number:04}.txt" for number in range(1000)])[:4]
    ['f1', 'f2', 'f3', 'f4']
    """
    names = [name for name in names if is_name(name)]
    if not names:
        return []
    last = names[-1]
    places = range(min(len(last), PLACES_MAX))
    seen_at = [{name[place] for name in names if len(name) > place} for place in places]
    is_hex = any(seen & DIGITS and seen & HEX and seen <= DIGITS | HEX for seen in seen_at)
    points = set()
    for place, seen in zip(places, seen_at, strict=True):
        if len(seen) > 1 and last[place] == max(seen) and place and seen <= DIGITS:
            continue
        likely = seen | (DIGITS if seen & DIGITS else set())
        if is_hex and seen <= DIGITS | HEX:
            likely |= DIGITS | HEX
        if len(seen) == 1 and not seen & DIGITS:
            likely = seen
        points |= {last[:place] + character for character in likely if character > last[place]}
    ordered = sorted(points)
    step = max(1, -(-len(ordered) // SPLITS_MAX))
    return ordered[::step]


async def list_subtree(store: Store, prefix: Key) -> list[ObjectInfo]:
    """Every object whose key begins with ``prefix``, however deep. Raises StoreError."""
    found: list[ObjectInfo] = []
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        found.extend(page.objects)
        token = page.next_token
        if token is None:
            return found
