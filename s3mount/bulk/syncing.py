"""Makes one place hold what another holds: what differs is copied, and what is too much deleted where that is wanted.

Both sides are listed in the order of names and merged, so that memory holds a few batches of each, however many
there are. What is too much is deleted after all else succeeded, and waits for that on the disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import NamedTuple

import trio

from s3mount.bulk.deleting import Deleter
from s3mount.bulk.location import LocalPath, S3Location
from s3mount.bulk.matching import Pair, Pairs, Side, is_same
from s3mount.bulk.report import Report
from s3mount.bulk.running import Done, Performer, Task, for_each
from s3mount.bulk.selecting import Item, Refuse, Send, file_item, streamed
from s3mount.bulk.sync_memory import SyncMemory
from s3mount.bulk.transfers import Transfers
from s3mount.checkout.paths import refusal
from s3mount.errors import DestinationError, S3MountError, SourceError
from s3mount.manifest.spill_file import Chunk, Spill
from s3mount.patterns import PathFilter
from s3mount.tree import attributes

TIMES_APART_NS = 1_000_000
"""Times that lie nearer are the same: file systems and formats keep fewer digits."""
SECOND_NS = 1_000_000_000
EXTRAS_IN_MEMORY = 1000


class Rules(NamedTuple):
    """When a file that is there is copied again, and what becomes of those that are too much.

    By default where size or time of change differ; ``size_only``: where the size does; ``checksum``: where the
    bytes may, by all that is known without reading an object. ``no_clobber``: never; ``update``: not where the
    destination is as new. ``deletes_max`` bounds ``delete``.
    """

    size_only: bool = False
    checksum: bool = False
    no_clobber: bool = False
    update: bool = False
    delete: bool = False
    deletes_max: int | None = None


class Sync:
    """One run. ``source`` and ``destination`` are folders, at least one of them in S3."""

    def __init__(
        self,
        source: Side,
        destination: Side,
        rules: Rules,
        transfers: Transfers,
        report: Report,
        memory: SyncMemory,
        *,
        takes: PathFilter,
        refuse: Refuse,
    ) -> None:
        self._source = source
        self._destination = destination
        self._rules = rules
        self._transfers = transfers
        self._report = report
        self._memory = memory
        self._takes = takes
        self._refuse = refuse
        self._performer = Performer(report)
        self._found = 0
        self._extras = _Extras()
        # A folder's marker is no file.
        self._is_local = source.store is None or destination.store is None

    async def run(self) -> None:
        """Copy, then delete. Raises S3MountError where the rest was given up, and for deletions that are refused."""
        try:
            async with (
                streamed(partial(self._source.items, self._takes, self._refuse)) as left,
                streamed(self._destination_items) as right,
            ):
                await for_each(Pairs(left, right), self._pair)
            self._report.all_known()
            if self._rules.delete and self._extras.count:
                await self._delete()
        finally:
            self._extras.close()

    async def _destination_items(self, send: Send) -> None:
        place = self._destination.place
        if isinstance(place, LocalPath) and not os.path.lexists(place.path):
            return
        await self._destination.items(self._takes, self._refuse, send)

    async def _pair(self, pair: Pair) -> None:
        source, there = pair
        item = source or there
        assert item is not None
        if self._is_local and (not item.name or item.name.endswith("/")):
            return
        if source is None:
            assert there is not None
            self._extras.add(there)
            return
        self._found += 1
        if there is not None and await self._judged(source, there):
            self._report.counts.objects += 1
            self._report.counts.skipped += 1
            return
        self._report.expect(1, source.size or 0)
        await self._performer.perform(self._task(source))

    async def _judged(self, source: Item, there: Item) -> bool:
        """Is what is there right? What cannot be found out is told when it is copied."""
        try:
            return await self._is_right(source, there)
        except S3MountError:
            return False

    async def _is_right(self, source: Item, there: Item) -> bool:
        rules = self._rules
        if rules.no_clobber or (rules.update and there.modified_ns >= source.modified_ns):
            return True
        if source.size != there.size:
            return False
        if rules.size_only:
            return True
        if rules.checksum:
            return await self._has_same_bytes(source, there)
        if self._source.store is None:
            return await self._is_unchanged(source, there, self._destination)
        if self._destination.store is None:
            return await self._is_unchanged(there, source, self._source)
        # A copy is younger than what it was made of; parts may give it another ETag.
        return (bool(source.etag) and source.etag == there.etag) or (
            there.modified_ns >= source.modified_ns
        )

    async def _has_same_bytes(self, source: Item, there: Item) -> bool:
        """By digests; what was compared once is remembered, and neither asked for nor read again."""
        file, obj = (source, there) if self._source.store is None else (there, source)
        if self._is_local and self._memory.knows(file, obj.etag, by_bytes=True):
            return True
        same = await is_same(source, self._source, there, self._destination, may_read=False)
        if same and self._is_local and _is_as_listed(file):
            self._memory.remember(file, obj.etag, by_bytes=True)
        return same is True

    async def _is_unchanged(self, file: Item, obj: Item, side: Side) -> bool:
        """Has a file the time of change that its object keeps? Asked of S3 once, and remembered with the ETag."""
        if self._memory.knows(file, obj.etag):
            return True
        assert side.store is not None
        info = await side.store.head(obj.key)
        kept = None
        if info.headers is not None:
            _, kept = attributes.mode_and_mtime(info.headers)
        if kept is not None:
            is_unchanged = abs(kept - file.modified_ns) < TIMES_APART_NS
        elif side is self._destination:
            # Put by a tool that keeps no times: it is newer than what it was made of.
            is_unchanged = file.modified_ns <= info.last_modified_ns
        else:
            is_unchanged = abs(info.last_modified_ns - file.modified_ns) < SECOND_NS
        if is_unchanged and info.etag == obj.etag:
            self._memory.remember(file, obj.etag)
        return is_unchanged

    # ------------------------------------------------------------------------ copying

    def _task(self, item: Item) -> Task:
        to = self._destination.url_of(item.name)
        return Task(
            "cp",
            item.url,
            to,
            self._copy(item),
            store=self._source.store or self._destination.store,
        )

    def _copy(self, item: Item) -> Callable[[], Awaitable[Done]]:
        source, destination = self._source.place, self._destination.place
        if isinstance(destination, S3Location):
            at = destination.at(item.name)
            if isinstance(source, S3Location):
                return partial(self._transfers.across, item, source.bucket, at)

            async def up() -> Done:
                done = await self._transfers.up(item.url, at)
                if done.skipped is None and _is_as_listed(item):
                    self._memory.remember(item, done.etag, by_bytes=True)
                return done

            return up
        assert isinstance(source, S3Location)
        why = refusal(item.name)
        path = os.path.join(destination.path, item.name)

        async def down() -> Done:
            if why:
                raise DestinationError(why)
            began_ns = time.time_ns()
            done = await self._transfers.down(item, source.bucket, path)
            with contextlib.suppress(OSError):
                made = file_item(path, item.name, os.stat(path))
                # It has its object's time: one that is as young as this was changed by somebody since.
                if made.size == done.size_bytes and made.modified_ns < began_ns:
                    self._memory.remember(made, done.etag)
            return done

        return down

    # ----------------------------------------------------------------------- deleting

    async def _delete(self) -> None:
        """Delete what is too much. Raises S3MountError where that is not to be."""
        count, most = self._extras.count, self._rules.deletes_max
        if not self._found:
            raise SourceError(
                f"{self._source.place.url} holds nothing: with --delete that would empty the destination"
            )
        if self._report.counts.failed:
            self._report.complain(f"nothing was deleted ({count:,} are too much), as some failed")
            return
        if most is not None and count > most:
            raise S3MountError(
                f"nothing was deleted: {count:,} are too much, and --max-delete allows {most:,}"
            )
        self._report.expect(count)
        if self._destination.store is not None:
            async with streamed(self._extras.send) as batches:
                await Deleter(self._destination.store, self._report).run(batches)
            return
        for batch in self._extras.batches():
            for item in batch:
                await self._performer.perform(
                    Task("rm", item.url, None, partial(_remove, item.url))
                )


def _is_as_listed(item: Item) -> bool:
    """Has nobody touched a local file since it was listed?"""
    try:
        now = file_item(item.url, item.name, os.stat(item.url))
    except OSError:
        return False
    return now == item


async def _remove(path: str) -> Done:
    def remove() -> None:
        try:
            os.unlink(path)
        except OSError as error:
            raise DestinationError(str(error.strerror)) from error

    await trio.to_thread.run_sync(remove)
    return Done()


class _Extras:
    """What only the destination has, in order; on the disk where it is much."""

    def __init__(self) -> None:
        self._spill: Spill[Item] = Spill(Item)
        self._chunks: list[Chunk] = []
        self._held: list[Item] = []
        self.count = 0

    def add(self, item: Item) -> None:
        """One more."""
        self.count += 1
        self._held.append(item)
        if len(self._held) >= EXTRAS_IN_MEMORY:
            self._chunks.append(self._spill.put(self._held))
            self._held = []

    def batches(self) -> Iterator[list[Item]]:
        """All of them."""
        for chunk in self._chunks:
            yield self._spill.get(chunk)
        if self._held:
            yield self._held

    async def send(self, send: Send) -> None:
        """The same, as they are asked for."""
        for batch in self.batches():
            await send(batch)

    def close(self) -> None:
        """Give the file up. Repeatable."""
        self._spill.close()
