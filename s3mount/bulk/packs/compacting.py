"""Packs with little left alive, written anew: ``s3mount pack compact``.

Others may write, read and compact meanwhile. What is alive is copied first, with its place in the order of writes, so
that whatever is written meanwhile stays later. A pack is removed when S3 has all that was alive in it elsewhere, by
exactly the version that was read: the tar file first, as an index without one counts for nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

import trio

from s3mount.bulk.location import S3Location
from s3mount.bulk.packs.members import Sink, Span, read_spans
from s3mount.bulk.packs.named import loaded_packs
from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.running import FATAL
from s3mount.clock import SystemClock, WallClock
from s3mount.errors import ChecksumError, NoSuchKeyError, PackError, S3MountError
from s3mount.pack.entry import Entry
from s3mount.pack.finding import Loaded, merged, with_order
from s3mount.pack.index import SUFFIX
from s3mount.pack.writer import Limits, Writer, open_writer
from s3mount.refs import Key
from s3mount.s3.store import Store

OPERATION = "pack compact"
TOMBSTONE_DAYS = 1
"""A tombstone stays so long, for packs that were begun before it and are not in S3 yet."""
_IN_MEMORY_BYTES = 1 << 20


class Job(NamedTuple):
    """One pack to write anew. ``live`` are the numbers of its entries that are kept, tombstones among them."""

    loaded: Loaded
    live: list[int]
    live_bytes: int


def plan(packs: Sequence[Loaded], live_below: float, now_ms: int) -> list[Job]:
    """The packs of whose bytes a smaller share than ``live_below`` is alive. Pure."""
    winners = merged(packs)
    counted: dict[Key, int] = {}
    for loaded in packs:
        for entry in loaded.contents.entries:
            key = loaded.folder + entry.name
            counted[key] = counted.get(key, 0) + 1
    jobs = []
    for loaded in packs:
        if loaded.contents.head.foreign:
            continue
        live, live_bytes, all_bytes = [], 0, 0
        has_dead = False
        for position, entry in enumerate(loaded.contents.entries):
            key = loaded.folder + entry.name
            all_bytes += entry.stop - entry.header
            is_winner = winners[key] == (loaded, position)
            order = entry.order or loaded.contents.head.id
            if is_winner and entry.deleted:
                is_winner = counted[key] > 1 or _age_days(order, now_ms) < TOMBSTONE_DAYS
            if is_winner:
                live.append(position)
                live_bytes += entry.stop - entry.header
            else:
                has_dead = True
        if (has_dead and live_bytes < live_below * all_bytes) or (has_dead and not all_bytes):
            jobs.append(Job(loaded, live, live_bytes))
    return jobs


def _age_days(order: str, now_ms: int) -> float:
    return (now_ms - int(order.partition("-")[0])) / 86_400_000


class Compacting:
    """Compacts the packs below one folder of a store."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        report: Report,
        *,
        limits: Limits,
        live_below: float,
        keeps_versions: bool = False,
        clock: WallClock | None = None,
    ) -> None:
        self._store = store
        self._location = location
        self._report = report
        self._limits = limits
        self._live_below = live_below
        self._keeps_versions = keeps_versions
        self._clock = clock or SystemClock()

    async def run(self) -> None:
        """Compact all. Failures of single packs are reported: such stay as they are.

        Raises PackError where an index cannot be read, as it may have later entries; and what all would meet.
        """
        packs = await loaded_packs(self._store, self._location, self._report, OPERATION)
        if self._report.counts.failed:
            raise PackError("nothing was compacted, as not every index can be read")
        jobs = plan(packs, self._live_below, self._clock.now_ns() // 1_000_000)
        self._report.expect(len(jobs), sum(job.live_bytes for job in jobs))
        self._report.all_known()
        last_id = max((loaded.contents.head.id for loaded in packs), default="")
        by_place: dict[tuple[Key, str | None], list[Job]] = {}
        for job in jobs:
            place = (job.loaded.folder, job.loaded.pack.tar.storage_class)
            by_place.setdefault(place, []).append(job)
        for (folder, storage_class), group in by_place.items():
            if self._report.is_dry_run:
                for job in group:
                    self._tell(job, None)
                continue
            async with open_writer(
                self._store,
                self._location.bucket,
                folder,
                self._limits,
                storage_class=storage_class,
                gives_up=True,
                after=last_id,
                clock=self._clock,
            ) as writer:
                await self._group(writer, group)

    async def _group(self, writer: Writer, jobs: Sequence[Job]) -> None:
        """Packs of one folder: all that is alive first, and then they are removed."""
        moved = []
        for job in jobs:
            try:
                await self._move(writer, job)
            except S3MountError as error:
                if isinstance(error, FATAL):
                    raise
                self._tell(job, error)
            else:
                moved.append(job)
        try:
            await writer.close()
        except S3MountError as error:
            for job in moved:
                self._tell(job, error)
            return
        for job in moved:
            failure: S3MountError | None = None
            try:
                await self._remove(job.loaded)
            except S3MountError as error:
                if isinstance(error, FATAL):
                    raise
                failure = error
            self._tell(job, failure)

    async def _move(self, writer: Writer, job: Job) -> None:
        """Put what is alive in a pack into others. Raises StoreError, ChecksumError where it is not as it was."""
        spans = []
        for position in job.live:
            entry = with_order(job.loaded, position)
            if entry.deleted:
                await writer.delete(entry.name, order=entry.order)
            else:
                spans.append(Span(entry.header, entry.stop - entry.header, position))

        def sink(span: Span) -> Sink:
            return _MemberSink(writer, with_order(job.loaded, span.position))

        await read_spans(self._store, job.loaded.ref, spans, sink)
        self._report.moved(job.live_bytes)

    async def _remove(self, loaded: Loaded) -> None:
        """The tar file and then its index, as far as they are those that were read."""
        tar, beside = loaded.pack
        await self._delete(tar.key, tar.etag)
        if beside is not None:
            await self._delete(f"{tar.key}{SUFFIX}", beside.etag)

    async def _delete(self, key: Key, etag: str) -> None:
        try:
            found = await self._store.head(key)
        except NoSuchKeyError:
            return
        if found.etag != etag:
            raise PackError(f"{key} was replaced since it was read, and stays")
        if found.version_id is None or self._keeps_versions:
            await self._store.delete(key, if_match=etag)
        else:
            await self._store.delete(key, version_id=found.version_id)

    def _tell(self, job: Job, error: S3MountError | None) -> None:
        tar = job.loaded.pack.tar
        source = S3Location(self._location.bucket, tar.key).url
        if error is not None:
            self._report.fail(OPERATION, source, None, error)
            return
        outcome = Outcome(
            operation=OPERATION,
            success=True,
            source=source,
            bytes=job.live_bytes,
            seconds=round(time.monotonic() - self._report.counts.began_s, 6),
        )
        self._report.take(outcome)


class _MemberSink:
    """A member, headers included, to another pack."""

    def __init__(self, writer: Writer, entry: Entry) -> None:
        self._writer = writer
        self._entry = entry
        self._digest = hashlib.sha256()
        self._at = entry.header
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by end or drop
            _IN_MEMORY_BYTES
        )

    def write(self, data: memoryview) -> None:
        """See ``Sink.write``."""
        entry = self._entry
        start, stop = entry.body - self._at, entry.body + entry.size - self._at
        self._digest.update(data[max(0, start) : max(0, stop)])
        self._file.write(data)
        self._at += len(data)

    async def end(self) -> None:
        """See ``Sink.end``. Raises ChecksumError: such a pack stays."""
        await trio.lowlevel.checkpoint()
        with self._file:
            if self._digest.hexdigest() != self._entry.sha256:
                raise ChecksumError(f"{self._entry.name!r} is not what the index tells of")
            self._file.seek(0)
            await self._writer.add_member(self._entry, self._file)

    def drop(self) -> None:
        """See ``Sink.drop``."""
        self._file.close()
