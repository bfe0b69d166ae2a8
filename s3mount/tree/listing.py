"""What S3 lists directly below a prefix, as names a directory can show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from s3mount.names import is_trial_key
from s3mount.refs import Key, ListPage, ObjectInfo
from s3mount.s3.store import Store
from s3mount.tasks import first_error
from s3mount.tree.key_split import KeySplit, NameShape
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


PAGES_ALONE = 4
"""So many pages come one after the other; most directories end before."""
STREAMS_MAX = 8
"""Pages of one large directory that are on their way at once."""
GUESSES_SHARE = 0.33
"""At most this share of the pages so far are ranges that held nothing, or of which nothing is known yet."""
LEARN_STEP = 10
"""Of a page, one name of so many is looked at closely."""
LEFT_MIN = 4.0
"""A range is parted where so many pages are thought to follow the one on its way: half a page of the
first part's end is listed twice. 50,000 names take 15 to 21 round trips and 54 to 73 requests, whatever they look
like; with 3 pages 14 to 21 and 56 to 78, with 5 16 to 21 and 54 to 77 (tests/unit/tree/test_listing.py counts
both, of 20,000). Of what lies behind all that is known no more is expected than is known."""


async def list_directory(store: Store, prefix: Key, *, page_keys: int = 1000) -> Listing:
    """List everything directly below ``prefix`` (empty, or ending with ``/``). Raises StoreError.

    The first pages come one by one; where more follow, the rest of the names is parted into ranges that are
    listed side by side, and parted again as they turn out to be long.
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
        await _Ranges(store, prefix, listing, page_keys).list_behind(page)
    listing.drop_shadowed()
    return listing


@dataclass(slots=True, eq=False)
class _Range:
    """The names behind ``after`` up to ``stop``, inclusive (``None``: to the end).

    ``first`` and ``last`` are those of the page that came last; empty where there is none to tell from.
    Of the ``is_tail`` range nothing is known behind.
    """

    after: str = ""
    stop: str | None = None
    token: str | None = None
    pages: int = 0
    first: str = ""
    last: str = ""
    is_tail: bool = False


class _Ranges:
    """The rest of one large directory."""

    def __init__(self, store: Store, prefix: Key, listing: Listing, page_keys: int) -> None:
        self._store = store
        self._prefix = prefix
        self._listing = listing
        self._page_keys = page_keys
        self._shape = NameShape()
        self._ranges: list[_Range] = []
        self._void = 0
        self._is_ordered = store.lists_in_order

    async def list_behind(self, page: ListPage) -> None:
        """List all that follows ``page``. Raises StoreError."""
        files = list(self._listing.files)
        self._is_ordered = self._is_ordered and files == sorted(files)
        self._shape.learn([*files[::LEARN_STEP], *self._listing.directories])
        part = _Range(token=page.next_token, is_tail=True)
        self._note(part, page)
        with first_error():
            async with trio.open_nursery() as nursery:
                self._begin(nursery, part)
                self._part(nursery)

    def _begin(self, nursery: trio.Nursery, part: _Range) -> None:
        self._ranges.append(part)
        nursery.start_soon(self._list, nursery, part)

    async def _list(self, nursery: trio.Nursery, part: _Range) -> None:
        is_over = False
        while not is_over:
            page = await self._store.list_page(
                self._prefix,
                delimiter="/",
                token=part.token,
                start_after=None if part.token else self._prefix + part.after,
                max_keys=self._page_keys,
            )
            part.token = page.next_token
            self._note(part, page)
            stop = None if part.stop is None else self._prefix + part.stop
            is_over = _take_in(self._listing, self._prefix, page, stop) or part.token is None
            if is_over:
                self._ranges.remove(part)
            self._part(nursery)

    def _note(self, part: _Range, page: ListPage) -> None:
        """Learn from the page that came last."""
        start = len(self._prefix)
        keys = [info.key[start:] for info in page.objects]
        directories = [common[start:-1] for common in page.prefixes]
        names = [*keys[:1], *directories[:1], *keys[-1:], *directories[-1:]]
        part.pages += 1
        part.first = part.last = ""
        if part.pages == 1 and (not names or (part.stop is not None and min(names) > part.stop)):
            self._void += 1
            for before in self._ranges:
                before.is_tail |= part.is_tail and before.stop == part.after
        is_ordered = keys == sorted(keys) and directories == sorted(directories)
        self._is_ordered = self._is_ordered and is_ordered
        if names:
            part.first, part.last = min(names), max(names)
            self._shape.learn([*names, *keys[::LEARN_STEP], *directories[::LEARN_STEP]])

    def _part(self, nursery: trio.Nursery) -> None:
        """Part the longest ranges, as long as another page may be on its way.

        A store that does not list in order (S3 Express) cannot be asked for ranges.
        """
        while self._is_ordered and len(self._ranges) < STREAMS_MAX:
            unknown = sum(not part.pages for part in self._ranges)
            if unknown + self._void >= GUESSES_SHARE * self._listing.pages:
                return
            longest, best = None, KeySplit("", LEFT_MIN)
            for part in self._ranges:
                if not part.last:
                    continue
                pages_max = self._listing.pages if part.is_tail else math.inf
                found = self._shape.parting(part.first, part.last, part.stop, pages_max)
                if found is not None and found.pages_left >= best.pages_left:
                    longest, best = part, found
            if longest is None:
                return
            new = _Range(best.point, longest.stop, is_tail=longest.is_tail)
            longest.stop, longest.is_tail = best.point, False
            self._begin(nursery, new)


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
        elif is_trial_key(info.key):
            continue
        elif is_name(name):
            listing.files[name] = info
        else:
            listing.ignored.append(info.key)
    return is_over


async def list_subtree(store: Store, prefix: Key) -> list[ObjectInfo]:
    """Every object whose key begins with ``prefix``, however deep. Raises StoreError."""
    found: list[ObjectInfo] = []
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        found.extend(info for info in page.objects if not is_trial_key(info.key))
        token = page.next_token
        if token is None:
            return found
