"""Which keys are objects of their own: those hide members of packs of the same name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import trio

from s3mount.errors import NoSuchKeyError
from s3mount.pack.union import LAST
from s3mount.refs import Key, ListPage, ObjectInfo
from s3mount.s3.store import Store

FOLDERS_MAX = 1000
PAGES_MAX = 64
PAGE_WORTH = 8
"""A page that tells of fewer keys than this is not worth it: so few are asked for by HEAD."""


class _Page(NamedTuple):
    """All objects directly in a folder behind ``after``, up to ``upto``."""

    after: Key
    upto: Key
    asked_at: float
    objects: dict[Key, ObjectInfo]


class Shadows:
    """What lists of the folders of ``store`` told a moment ago."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: OrderedDict[Key, list[_Page]] = OrderedDict()

    def note(self, folder: Key, after: Key, page: ListPage, asked_at: float) -> Key:
        """A page of a list of ``folder``, with its delimiter, came; the last key that it tells of."""
        names = [info.key for info in page.objects[-1:]] + list(page.prefixes[-1:])
        upto = max(names) if page.next_token is not None and names else folder + LAST
        pages = self._pages.pop(folder, [])
        objects = {info.key: info for info in page.objects}
        # Each page that came later tells better.
        self._pages[folder] = [*pages[1 - PAGES_MAX :], _Page(after, upto, asked_at, objects)]
        if len(self._pages) > FOLDERS_MAX:
            self._pages.popitem(last=False)
        return upto

    def changed(self, key: Key) -> None:
        """Something was written or deleted here."""
        self._pages.pop(_folder(key), None)

    async def find(self, key: Key, ttl_s: float) -> ObjectInfo | None:
        """The object under ``key``, as of at most ``ttl_s`` ago. Raises StoreError."""
        since = trio.current_time() - ttl_s
        for page in reversed(self._pages.get(_folder(key), ())):
            if ttl_s and page.asked_at >= since and page.after < key <= page.upto:
                return page.objects.get(key)
        found = await self.present([key], with_neighbours=bool(ttl_s))
        return found.get(key)

    async def present(
        self, keys: Iterable[Key], *, with_neighbours: bool = False
    ) -> dict[Key, ObjectInfo]:
        """Those of ``keys`` that are objects now. One request for many of a folder. Raises StoreError.

        ``with_neighbours``: what comes behind few is asked for with them, as it is likely to be asked for next.
        """
        folders: dict[Key, list[Key]] = {}
        for key in keys:
            folders.setdefault(_folder(key), []).append(key)
        found: dict[Key, ObjectInfo] = {}
        for folder, wanted in folders.items():
            wanted.sort()
            if not self._store.lists_in_order:
                await self._head(wanted, found)
            elif with_neighbours or len(wanted) >= PAGE_WORTH:
                await self._list(folder, wanted, found)
            else:
                await self._head(wanted, found)
        return found

    async def _head(self, keys: list[Key], found: dict[Key, ObjectInfo]) -> None:
        for key in keys:
            try:
                found[key] = await self._store.head(key)
            except NoSuchKeyError:
                continue

    async def _list(self, folder: Key, keys: list[Key], found: dict[Key, ObjectInfo]) -> None:
        left = keys
        while left:
            # A key that sorts just before the first of them.
            after = "" if left[0] == folder else max(folder, left[0][:-1])
            asked_at = trio.current_time()
            page = await self._store.list_page(folder, delimiter="/", start_after=after or None)
            upto = self.note(folder, after, page, asked_at)
            objects = {info.key: info for info in page.objects}
            told = [key for key in left if key <= upto]
            found.update((key, objects[key]) for key in told if key in objects)
            left = left[len(told) :]
            if told and len(told) < PAGE_WORTH and left:
                await self._head(left, found)
                return
            if not told:
                await self._head(left[:1], found)
                left = left[1:]


def _folder(key: Key) -> Key:
    """In which the key is listed; a folder's marker is listed in the folder itself."""
    return key[: key.rfind("/") + 1]
