"""Many small bytes into few objects: packs that are written while a program runs, and where each member will lie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import trio

from s3mount.api.blocking import BlockingBucket
from s3mount.api.bucket import Bucket
from s3mount.pack.batch import Layout
from s3mount.pack.entry import MODE
from s3mount.pack.writer import (
    PACK_BYTES,
    PACK_FILES,
    Limits,
    PackBatch,
    Placed,
    Stored,
    Writer,
)

T = TypeVar("T")
Do: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Any]
SECONDS = 5.0


class PackWriter:
    """Writes packs below ``prefix`` of a bucket, for any number of tasks: ``async with PackWriter(bucket, "logs")``.

    A pack is closed when it is ``seconds`` old (``None``: never by its age), has ``bytes`` or ``files``. ``windows``
    closes it by time alone and names it by the beginning of its window, ``layout="v7"`` gives every member a header
    of 512 bytes (docs/PACKS.md). ``storage_class`` is that of the packs.

    What S3 cannot take for now is sent until it does. The end of the block closes the writer, and so does the
    bucket's; a program that is killed loses what S3 had not got. Raises UsageError for limits that cannot be.
    """

    def __init__(
        self,
        bucket: Bucket,
        prefix: str = "",
        *,
        seconds: float | None = SECONDS,
        bytes: int = PACK_BYTES,
        files: int = PACK_FILES,
        storage_class: str | None = None,
        windows: bool = False,
        layout: Layout = "pax",
    ) -> None:
        self._writer = Writer(
            bucket.store,
            bucket.name,
            bucket.folder_at(prefix).key if prefix else bucket.prefix,
            bucket.nursery,
            Limits(bytes, files, seconds, windows),
            storage_class=storage_class,
            layout=layout,
        )
        self._bucket = bucket
        bucket.writers.append(self)

    async def __aenter__(self) -> PackWriter:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            await self.close()
            self._bucket.writers.remove(self)

    async def put(
        self, name: str, body: bytes, *, mode: int = MODE, mtime_ns: int | None = None
    ) -> Placed[PackBatch]:
        """Put a member into a pack: where it will lie. Waits while five packs wait for S3 already.

        ``await placed.batch.wait()`` returns when S3 has it. Raises UsageError for a name that cannot be one, after
        which the writer goes on; DiskFullError; and what S3 refused an earlier pack for.
        """
        return await self._writer.put(name, body, mode=mode, mtime_ns=mtime_ns)

    def try_put(
        self, name: str, body: bytes, *, mode: int = MODE, mtime_ns: int | None = None
    ) -> Placed[PackBatch]:
        """As ``put``, but raises PackFullError where that would wait; nothing is taken then."""
        return self._writer.try_put(name, body, mode=mode, mtime_ns=mtime_ns)

    async def delete(self, name: str) -> PackBatch:
        """Note that ``name`` is deleted, whatever earlier packs below the prefix have of it. Raises as ``put``."""
        return await self._writer.delete(name)

    async def flush(self) -> None:
        """Close the open pack, and return when S3 has all that was put. Repeatable.

        Raises the first of what S3 refused; such packs are kept, and the next call tries them again.
        """
        await self._writer.flush()

    async def close(self) -> None:
        """As ``flush``: when it returns S3 has all that was put, durably."""
        await self._writer.close()

    def abandon(self) -> None:
        """Give up what S3 has not got, when nothing is under way any more. Repeatable."""
        self._writer.abandon()


class BlockingPackBatch:
    """``PackBatch`` for threads."""

    def __init__(self, do: Do, batch: PackBatch) -> None:
        self._do = do
        self._batch = batch

    @property
    def key(self) -> str:
        """See ``PackBatch.key``."""
        return self._batch.key

    @property
    def is_stored(self) -> bool:
        """See ``PackBatch.is_stored``."""
        return self._batch.is_stored

    def wait(self) -> Stored:
        """See ``PackBatch.wait``."""
        stored: Stored = self._do(self._batch.wait)
        return stored


class BlockingPackWriter:
    """``PackWriter`` for any number of threads, on a bucket of ``open_sync``: ``with BlockingPackWriter(bucket)``."""

    def __init__(self, bucket: BlockingBucket, prefix: str = "", **how: Any) -> None:
        self._do: Do = bucket.do
        self._writer: PackWriter = self._at_once(partial(PackWriter, bucket.inner, prefix, **how))

    def _at_once(self, work: Callable[[], T]) -> T:
        async def call() -> T:
            await trio.lowlevel.checkpoint()
            return work()

        result: T = self._do(call)
        return result

    def __enter__(self) -> BlockingPackWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(partial(self._writer.__aexit__, kind, error, traceback))

    def _told(self, placed: Placed[PackBatch]) -> Placed[BlockingPackBatch]:
        return Placed(
            placed.bucket,
            placed.key,
            placed.name,
            placed.header,
            placed.body,
            placed.size,
            BlockingPackBatch(self._do, placed.batch),
        )

    def put(self, name: str, body: bytes, **about: Any) -> Placed[BlockingPackBatch]:
        """See ``PackWriter.put``."""
        return self._told(self._do(partial(self._writer.put, name, body, **about)))

    def try_put(self, name: str, body: bytes, **about: Any) -> Placed[BlockingPackBatch]:
        """See ``PackWriter.try_put``."""
        return self._told(self._at_once(partial(self._writer.try_put, name, body, **about)))

    def delete(self, name: str) -> BlockingPackBatch:
        """See ``PackWriter.delete``."""
        return BlockingPackBatch(self._do, self._do(partial(self._writer.delete, name)))

    def flush(self) -> None:
        """See ``PackWriter.flush``."""
        self._do(self._writer.flush)

    def close(self) -> None:
        """See ``PackWriter.close``."""
        self._do(self._writer.close)
