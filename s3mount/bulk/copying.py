"""What ``cp`` and ``mv`` copy to where: sources become tasks, one for each object or file.

A destination that ends with a slash, names a bucket alone or is a local folder means "into": what is copied keeps its
name there. A source that ends with a slash means what lies in it; without one the folder itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from s3mount.bulk.location import LocalPath, Location, RemoteUrl, S3Location, Stream
from s3mount.bulk.report import Report
from s3mount.bulk.running import (
    FATAL,
    Done,
    Flattened,
    OneByOne,
    Performer,
    Task,
    for_each,
    refusing,
)
from s3mount.bulk.selecting import (
    ALL_NAMES,
    Item,
    Send,
    local_files,
    named_objects,
    objects,
    one_object,
    streamed,
    walk,
)
from s3mount.bulk.sources import from_file
from s3mount.bulk.transfers import Transfers
from s3mount.checkout.paths import refusal
from s3mount.errors import DestinationError, S3MountError, SourceError, UsageError
from s3mount.patterns import PathFilter
from s3mount.s3.store import Store

Destination: TypeAlias = S3Location | LocalPath | Stream


class Chosen(NamedTuple):
    """Which of what is named is meant. ``names`` are those of ``--files-from``."""

    recursive: bool = False
    takes: PathFilter = ALL_NAMES
    names: Iterator[str] | None = None
    follows_links: bool = True
    version_id: str | None = None


SOURCES_AT_ONCE = 16
"""Of those that are named singly; each may be a tree, whose objects go side by side as well."""

Write: TypeAlias = Callable[[memoryview], Awaitable[None]]


class Copying:
    """Copies what was named to one destination.

    ``words`` are the options that ``run`` needs to do the same; ``write`` writes to standard output, if there is one.
    ``at_once`` of the sources are copied side by side.
    """

    def __init__(
        self,
        operation: str,
        transfers: Transfers,
        report: Report,
        to: Destination,
        chosen: Chosen,
        *,
        words: Sequence[str] = (),
        write: Write | None = None,
        at_once: int = SOURCES_AT_ONCE,
    ) -> None:
        self._at_once = at_once
        self._operation = operation
        self._transfers = transfers
        self._report = report
        self._performer = Performer(report)
        self._to = to
        self._chosen = chosen
        self._words = words
        self._write = write
        self._is_into = to.is_folder or (isinstance(to, LocalPath) and os.path.isdir(to.path))

    async def run(self, sources: Sequence[Location]) -> None:
        """Copy all. Failures of single objects are reported; raises what all would meet, and UsageError."""
        if len(sources) > 1 and not self._is_into:
            raise UsageError("several sources need a folder as destination: end it with a slash")
        workers = 1 if self._is_ordered(sources) else self._at_once
        await for_each(OneByOne(sources), self._copy, workers=workers)
        self._report.all_known()

    def _is_ordered(self, sources: Sequence[Location]) -> bool:
        """Must they come one after the other? So do lines of a dry run, and sources of which a later one may have the
        place of an earlier one: of two that are called alike, or with what lies in a folder, the last one stays.
        """
        if self._report.is_dry_run or self._chosen.names is not None:
            return True
        names = []
        for source in sources:
            if isinstance(source, Stream) or source.is_folder:
                return True
            if isinstance(source, RemoteUrl):
                names.append(source.name)
            elif isinstance(source, LocalPath):
                names.append(os.path.basename(os.path.abspath(source.path)))
            else:
                if source.is_pattern:
                    return True
                names.append(os.path.basename(source.key))
        return len(set(names)) < len(names)

    async def _copy(self, source: Location) -> None:
        try:
            await self._from(source)
        except S3MountError as error:
            if isinstance(error, (UsageError, *FATAL)):
                raise
            self._report.fail(self._operation, source.url, self._to.url, error)

    async def _from(self, source: Location) -> None:
        if isinstance(source, S3Location):
            await self._from_s3(source)
        elif isinstance(source, LocalPath):
            await self._from_disk(source)
        elif isinstance(source, Stream):
            await self._from_stream(source)
        else:
            await self._from_url(source)

    # --------------------------------------------------------------- sources

    async def _from_s3(self, source: S3Location) -> None:
        store = await self._transfers.source_store(source.bucket)
        chosen = self._chosen
        if source.is_pattern or source.is_folder or chosen.recursive:
            if chosen.version_id:
                raise UsageError("--version-id is for one object")
            folder, below = source, ""
            if not source.is_pattern and not source.is_folder:
                folder = S3Location(source.bucket, f"{source.key}/")
                below = f"{os.path.basename(source.key)}/" if self._is_into else ""
            if chosen.names is not None:
                produce = partial(named_objects, folder, chosen.names)
            else:
                produce = partial(objects, store, folder, takes=chosen.takes)
            task_of = partial(self._object, source.bucket, store)
            if not await self._tree(produce, below, task_of) and folder.key:
                raise SourceError(f"nothing {'fits' if source.is_pattern else 'lies below'} it")
            return
        item = await one_object(store, source, version_id=chosen.version_id)
        self._report.expect(1, item.size or 0)
        await self._performer.perform(
            self._object(source.bucket, store, item, os.path.basename(source.key), is_whole=True)
        )

    async def _from_disk(self, source: LocalPath) -> None:
        to = self._to
        if not isinstance(to, S3Location):
            raise UsageError(f"{source.path}: the source or the destination has to be in S3")
        chosen = self._chosen
        is_folder = os.path.isdir(source.path)
        if is_folder and not (source.is_folder or chosen.recursive):
            raise SourceError("it is a folder, which needs -r, or a slash at its end")
        if not is_folder:
            name = os.path.basename(source.path)
            size = os.path.getsize(source.path) if os.path.isfile(source.path) else 0
            self._report.expect(1, size)
            await self._performer.perform(
                self._file(Item(source.path, name, size), name, is_whole=True)
            )
            return
        below = ""
        if self._is_into and not source.is_folder:
            below = f"{os.path.basename(os.path.abspath(source.path))}/"
        if chosen.names is not None:
            items = _named_files(source.path, chosen.names)
        else:
            refuse = refusing(self._report, self._operation)
            items = walk(source.path, refuse, takes=chosen.takes, follow_links=chosen.follows_links)
        await self._tree(partial(local_files, items), below, self._file)

    async def _tree(
        self, produce: Callable[[Send], Awaitable[None]], below: str, task_of: Callable[..., Task]
    ) -> int:
        """One task for each item of a tree, which lies ``below`` the destination; how many there were."""
        if isinstance(self._to, Stream):
            raise UsageError("many objects go to standard output by s3mount cat")

        found = 0

        async def counted(send: Send) -> None:
            async def pass_on(batch: list[Item]) -> None:
                nonlocal found
                found += len(batch)
                self._report.expect(len(batch), sum(item.size or 0 for item in batch))
                await send(batch)

            await produce(pass_on)

        async def do(item: Item) -> None:
            await self._performer.perform(task_of(item, below + item.name))

        async with streamed(counted) as batches:
            await for_each(Flattened(batches), do)
        return found

    async def _from_stream(self, source: Stream) -> None:
        to = self._to
        if not isinstance(to, S3Location) or self._is_into:
            raise UsageError("standard input needs the key that it shall have: s3://BUCKET/KEY")
        self._report.expect(1)
        await self._performer.perform(
            self._task(
                "-", to.url, lambda: self._transfers.up_from(from_file(sys.stdin.buffer), to)
            )
        )

    async def _from_url(self, source: RemoteUrl) -> None:
        to = self._to
        if isinstance(to, Stream):
            raise UsageError("a URL is copied to S3 or to a file")
        if self._is_into and not source.name:
            raise DestinationError("the URL has no name at its end: say what it shall be called")
        self._report.expect(1)
        if isinstance(to, S3Location):
            at: S3Location | LocalPath = self._key_of(to, source.name, is_whole=True)
        else:
            path, why = self._path_of(to, source.name, is_whole=True)
            if why:
                raise DestinationError(why)
            at = LocalPath(path)
        await self._performer.perform(
            self._task(source.url, at.url, lambda: self._transfers.from_url(source.url, at))
        )

    # ----------------------------------------------------------------- tasks

    def _task(
        self,
        source: str,
        destination: str,
        work: Callable[[], Awaitable[Done]],
        store: Store | None = None,
    ) -> Task:
        return Task(self._operation, source, destination, work, self._words, store)

    def _object(
        self, bucket: str, store: Store, item: Item, name: str, *, is_whole: bool = False
    ) -> Task:
        to = self._to
        if isinstance(to, S3Location):
            at = self._key_of(to, name, is_whole=is_whole)
            return self._task(
                item.url, at.url, lambda: self._transfers.across(item, bucket, at), store
            )
        if isinstance(to, LocalPath):
            path, why = self._path_of(to, name, is_whole=is_whole)

            async def down() -> Done:
                if why:
                    raise DestinationError(why)
                return await self._transfers.down(item, bucket, path)

            return self._task(item.url, path, down, store)
        write = self._write
        if write is None:
            raise UsageError("there is no standard output for it")
        return self._task(item.url, "-", lambda: self._transfers.down_to(item, bucket, write))

    def _file(self, item: Item, name: str, *, is_whole: bool = False) -> Task:
        assert isinstance(self._to, S3Location)
        at = self._key_of(self._to, name, is_whole=is_whole)
        return self._task(item.url, at.url, lambda: self._transfers.up(item.url, at))

    def _key_of(self, to: S3Location, name: str, *, is_whole: bool) -> S3Location:
        """Where what is called ``name`` goes; ``is_whole``: it is all that is copied."""
        if is_whole and not self._is_into:
            return to
        folder = to if to.is_folder else S3Location(to.bucket, f"{to.key}/")
        return folder.at(name)

    def _path_of(self, to: LocalPath, name: str, *, is_whole: bool) -> tuple[str, str]:
        """The same on the disk, and why that cannot be."""
        if is_whole and not self._is_into:
            return to.path, ""
        return os.path.join(to.path, name), refusal(name) or ""


def _named_files(folder: str, names: Iterator[str]) -> Iterator[Item]:
    for name in names:
        path = os.path.join(folder, name)
        try:
            about = os.stat(path)
        except OSError:
            # Told when its turn comes.
            yield Item(path, name, 0)
        else:
            yield Item(path, name, about.st_size, about.st_mtime_ns)
