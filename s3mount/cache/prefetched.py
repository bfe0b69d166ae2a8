"""Prefetched contents: fetched before anybody asks, because they will probably be opened soon."""

from __future__ import annotations

from collections.abc import Callable

import trio

from s3mount.background import contained
from s3mount.cache.disk_cache import DiskCache
from s3mount.cache.entry import BlockFetch, Entry
from s3mount.cache.fetcher import BlockFetcher
from s3mount.refs import ObjectInfo

HEAD_BYTES = 512 * 1024
"""Of a content that is not fetched whole: its beginning, while the reader gets going."""


def prefetch_bytes(entry_size: int, small: bool) -> int:
    """What of a content of this size is prefetched."""
    return entry_size if small else min(entry_size, HEAD_BYTES)


class PrefetchedContent:
    """One content (or the beginning of it) that is kept at hand until ``close``.

    ``is_asked``: it was not local, so S3 was asked. ``info`` is what the answer told of the object, its
    headers included; ``None`` while it is under way, when it failed, and when nothing was asked.
    """

    __slots__ = ("_disk_cache", "_fetch", "_fetcher", "entry", "held_bytes", "info", "is_asked")

    def __init__(
        self, entry: Entry, fetcher: BlockFetcher, disk_cache: DiskCache, held_bytes: int
    ) -> None:
        self.entry = entry
        self.held_bytes = held_bytes
        self.info: ObjectInfo | None = None
        self.is_asked = False
        self._fetcher = fetcher
        self._disk_cache = disk_cache
        self._fetch: BlockFetch | None = None
        entry.holders.add(self)

    def follow(self, fetch: BlockFetch, on_arrival: Callable[[PrefetchedContent], None]) -> None:
        """It comes by this request."""
        self.is_asked = True
        self._fetch = fetch

        def ended() -> None:
            self.info = fetch.info
            on_arrival(self)

        fetch.on_end.append(ended)

    def kept_ranges(self) -> list[tuple[int, int]]:
        """What is not to be evicted."""
        return [(0, self.held_bytes)]

    async def arrived(self) -> None:
        """Return when the request has ended, well or not. May be cancelled."""
        if self._fetch is not None:
            await self._fetch.done.wait()
        else:
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """It was opened, or nobody wants it any more. What is under way goes on. Repeatable."""
        self.entry.holders.discard(self)
        with contained("letting go of a cached content"):
            self._disk_cache.let_go(self.entry)
