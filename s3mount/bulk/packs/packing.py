"""Local files into packs: ``s3mount pack create``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

import trio

from s3mount.bulk.location import LocalPath, S3Location
from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.running import FATAL, Flattened, refusing
from s3mount.bulk.selecting import Item, local_files, streamed, walk
from s3mount.errors import S3MountError, SourceError, UsageError
from s3mount.pack.batch import About
from s3mount.pack.entry import check_name
from s3mount.pack.writer import PackBatch, Writer
from s3mount.patterns import PathFilter
from s3mount.tasks import first_error

OPERATION = "pack create"


class Packing:
    """Puts files into the packs of one writer, and tells of each when S3 has its pack."""

    def __init__(self, writer: Writer, report: Report, to: S3Location) -> None:
        self._writer = writer
        self._report = report
        self._to = to
        self._waiting: dict[PackBatch, list[tuple[str, int]]] = {}
        self._began_s = time.monotonic()

    async def run(
        self, sources: Sequence[LocalPath], *, takes: PathFilter, follow_links: bool = True
    ) -> None:
        """Pack all that is named, and return when S3 has it. Failures of single files are reported.

        A folder that ends with a slash means what lies in it. Raises what all others would meet as well.
        """
        with first_error():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for source in sources:
                    try:
                        await self._from(source, takes, follow_links)
                    except S3MountError as error:
                        if isinstance(error, (UsageError, *FATAL)):
                            raise
                        self._report.fail(OPERATION, source.url, self._to.url, error)
                self._report.all_known()
                try:
                    await self._writer.close()
                except S3MountError:
                    # Each of its files is told of by who waits for the pack.
                    await trio.lowlevel.checkpoint()

    async def _from(self, source: LocalPath, takes: PathFilter, follow_links: bool) -> None:
        if not os.path.isdir(source.path):
            name = os.path.basename(source.path)
            size = os.path.getsize(source.path) if os.path.isfile(source.path) else 0
            self._report.expect(1, size)
            await self._one(Item(source.path, name, size), name)
            return
        below = "" if source.is_folder else f"{os.path.basename(os.path.abspath(source.path))}/"
        refuse = refusing(self._report, OPERATION)
        items = walk(source.path, refuse, takes=takes, follow_links=follow_links)
        async with streamed(partial(local_files, items)) as batches:
            async for item in Flattened(batches):
                self._report.expect(1, item.size or 0)
                await self._one(item, below + item.name)

    async def _one(self, item: Item, name: str) -> None:
        """Put one file."""
        try:
            check_name(name)
            if self._report.is_dry_run:
                self._tell(item.url, 0, self._to.url, None)
                return
            with _opened(item.url) as file:
                about = os.fstat(file.fileno())
                member = About(about.st_mtime_ns, about.st_mode, about.st_uid, about.st_gid)
                placed = await self._writer.put_file(name, file, about.st_size, member)
        except S3MountError as error:
            if isinstance(error, FATAL):
                raise
            self._report.fail(OPERATION, item.url, self._to.url, error)
            return
        self._report.moved(placed.size)
        if placed.batch not in self._waiting:
            self._waiting[placed.batch] = []
            self._nursery.start_soon(self._await, placed.batch)
        self._waiting[placed.batch].append((item.url, placed.size))

    async def _await(self, batch: PackBatch) -> None:
        """Tell of the files of one pack what became of it."""
        at = S3Location(batch.bucket, batch.key).url
        error: S3MountError | None = None
        version_id = None
        try:
            stored = await batch.wait()
            at, version_id = S3Location(batch.bucket, stored.key).url, stored.version_id
        except S3MountError as refusal:
            if isinstance(refusal, FATAL):
                raise
            error = refusal
        for url, size in self._waiting.pop(batch):
            if error is not None:
                self._report.fail(OPERATION, url, at, error)
            else:
                self._tell(url, size, at, version_id)

    def _tell(self, url: str, size: int, at: str, version_id: str | None) -> None:
        outcome = Outcome(
            operation=OPERATION,
            success=True,
            source=url,
            destination=at,
            bytes=size,
            seconds=round(time.monotonic() - self._began_s, 6),
            version_id=version_id,
        )
        self._report.take(outcome)


def _opened(path: str) -> BinaryIO:
    """A file to read. Raises SourceError."""
    try:
        # A pipe that nobody writes to would hold up all.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb")
    if not os.path.isfile(path):
        file.close()
        raise SourceError(f"{path}: it is no file")
    return file
