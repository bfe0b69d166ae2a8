"""Gathers members into packs and sends those: each when it is large, full or old enough, several at once."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, Any, BinaryIO, Generic, NamedTuple, TypeVar

import msgspec
import trio

from s3mount.clock import SystemClock, WallClock
from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    ObjectExistsError,
    PackFullError,
    PreconditionFailedError,
    S3MountError,
    StoreError,
    ThrottledError,
    UsageError,
)
from s3mount.flow.backoff import Backoff
from s3mount.pack.batch import PACK_BYTES_MAX, About, Batch, Layout, header_of
from s3mount.pack.entry import MODE, Entry, padded
from s3mount.pack.index import INDEX_HEADERS, SUFFIX
from s3mount.refs import Body, Condition, Key, ObjectHeaders, PutResult
from s3mount.s3.store import Store

B = TypeVar("B")
T = TypeVar("T")
PACK_BYTES = 64 << 20
PACK_FILES = 10_000
UNDER_WAY_MAX = 5
"""Packs at once of one writer, with the one that is being filled: so much of the disk they take."""
MEMBER_BYTES_MAX = PACK_BYTES_MAX - (64 << 20)
"""Of one with its headers; the rest is for the index."""
INLINE_BYTES_MAX = 1 << 20
"""A larger member is digested and written in a thread: 1 MiB takes about a millisecond."""
INLINE_ENTRIES_MAX = 1000
"""The index of so many takes a few milliseconds."""
CLOCKS_DIFFER_S = 0.02
"""A window that is waited for by the one clock has ended by the other, too: else it would be opened twice."""
TAR_HEADERS = ObjectHeaders(content_type="application/x-tar")
BATCH_HEADER = "s3mount-batch"
"""User metadata by which a writer knows its own pack again, when the answer to a PUT was lost."""


class Limits(NamedTuple):
    """When a pack is closed: by its size, its members, its age.

    With ``windows`` only by time, and its name is the beginning of the window, in milliseconds since the epoch,
    so that whoever knows the time knows the name.
    """

    bytes: int = PACK_BYTES
    files: int = PACK_FILES
    seconds: float | None = None
    windows: bool = False


class Stored(NamedTuple):
    """A pack that S3 has. ``bytes`` are its own, ``files`` its members."""

    bucket: str
    key: Key
    etag: str
    version_id: str | None
    bytes: int
    files: int


class PackBatch:
    """The pack that a member went to. ``key`` is its name from the beginning on."""

    def __init__(self, bucket: str, content: Batch) -> None:
        self.bucket = bucket
        self.promised_key = content.key
        self.content = content
        self.nonce = secrets.token_hex(8)
        self.tar: PutResult | None = None
        self.failure: S3MountError | None = None
        self._stored: Stored | None = None
        self._ended = trio.Event()

    @property
    def key(self) -> Key:
        """Under which it lies, or will."""
        return self.content.key

    @property
    def is_stored(self) -> bool:
        """Does S3 have it?"""
        return self._stored is not None

    async def wait(self) -> Stored:
        """Return when S3 has it, durably. Raises what S3 refuses it for; it is kept, for ``close`` to try again.

        ObjectExistsError: S3 has it, but under another key, as somebody else has written the one that was told.
        """
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure
        assert self._stored is not None
        if self.key != self.promised_key:
            raise ObjectExistsError(
                f"s3://{self.bucket}/{self.promised_key} was written by somebody else; this pack is "
                f"s3://{self.bucket}/{self.key}"
            )
        return self._stored

    def again(self) -> None:
        """It is tried once more."""
        self.failure = None
        self._ended = trio.Event()

    def failed(self, error: S3MountError) -> None:
        """S3 does not take it."""
        self.failure = error
        self._ended.set()

    def stored(self, tar: PutResult) -> None:
        """S3 has it and its index."""
        files = sum(not entry.deleted for entry in self.content.entries)
        self._stored = Stored(
            self.bucket, self.key, tar.etag, tar.version_id, self.content.size, files
        )
        self.content.close()
        self._ended.set()


class Placed(NamedTuple, Generic[B]):
    """Where a member will lie: ``header`` and ``body`` are offsets in the object ``key`` of ``bucket``.

    ``GET`` with ``Range: bytes=BODY-(BODY + SIZE - 1)`` reads it, as soon as ``batch.wait()`` has returned.
    """

    bucket: str
    key: Key
    name: str
    header: int
    body: int
    size: int
    batch: B


@asynccontextmanager
async def open_writer(
    store: Store, bucket: str, folder: Key, limits: Limits, **how: Any
) -> AsyncIterator[Writer]:
    """A ``Writer`` within the block, with its arguments. What S3 has not got when the block ends is given up: call
    ``Writer.close``. Raises what the block raises, as it is.
    """
    failure: Exception | None = None
    writer: Writer | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                writer = Writer(store, bucket, folder, nursery, limits, **how)
                yield writer
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        # Nobody writes to its files any more.
        if writer is not None:
            writer.abandon()
    if failure is not None:
        raise failure


async def _with_index(content: Batch, work: Callable[[], T]) -> T:
    """Do what makes the index of a pack, in a thread where it is a long one."""
    if len(content.entries) > INLINE_ENTRIES_MAX:
        return await trio.to_thread.run_sync(work)
    await trio.lowlevel.checkpoint()
    return work()


async def send_pack(store: Store, folder: Key, batch: PackBatch, headers: ObjectHeaders) -> None:
    """Put the tar file, then its index. Repeatable: what S3 has is not sent again. Raises S3MountError."""
    content = batch.content
    if not content.is_finished:
        await _with_index(content, content.finish)
    while batch.tar is None:
        batch.tar = await _put_new(store, batch, batch.key, content.body, headers)
        if batch.tar is None:
            # Two writers of one window: each has a pack, and the second one's place is told by wait().
            content.key = f"{folder}{content.id}-{batch.nonce}.tar"
    tar = batch.tar
    crashpoint("pack: tar put")
    body = await _with_index(content, partial(content.index_body, tar.etag))
    if await _put_new(store, batch, f"{batch.key}{SUFFIX}", body, INDEX_HEADERS) is None:
        raise ObjectExistsError(f"{batch.key}{SUFFIX} was written by somebody else")
    crashpoint("pack: index put")
    batch.stored(tar)


async def _put_new(
    store: Store, batch: PackBatch, key: Key, body: Body, headers: ObjectHeaders
) -> PutResult | None:
    """Put an object where none is; ``None``: there is one, and it is not ours."""
    headers = msgspec.structs.replace(headers, metadata={BATCH_HEADER: batch.nonce})
    try:
        return await store.put(key, body, headers, condition=Condition(if_absent=True))
    except PreconditionFailedError:
        info = await store.head(key)
        if info.headers is None or info.headers.metadata.get(BATCH_HEADER) != batch.nonce:
            return None
        return PutResult(info.etag, info.version_id)


class Writer:
    """Writes packs below ``folder`` of a store. For any number of tasks of one trio program.

    ``gives_up``: what S3 does not take after the store's own tries has failed; else it is tried until it does.
    ``after``: the id of a pack than which all that it writes are later.
    Nothing that was put is ever dropped but with the process: ``close`` tells that S3 has all of it.
    """

    def __init__(
        self,
        store: Store,
        bucket: str,
        folder: Key,
        nursery: trio.Nursery,
        limits: Limits,
        *,
        storage_class: str | None = None,
        layout: Layout = "pax",
        gives_up: bool = False,
        clock: WallClock | None = None,
        after: str = "",
    ) -> None:
        if limits.bytes > PACK_BYTES_MAX or limits.bytes < 1 or limits.files < 1:
            raise UsageError("a pack has at least one byte and file, and at most 5 GiB")
        if limits.windows and not limits.seconds:
            raise UsageError("windows need their length in seconds")
        self._store = store
        self._bucket = bucket
        self._folder = folder
        self._nursery = nursery
        self._limits = limits
        self._headers = msgspec.structs.replace(TAR_HEADERS, storage_class=storage_class)
        self._layout = layout
        self._gives_up = gives_up
        self._clock = clock or SystemClock()
        self._last_ms = int(after.partition("-")[0] or 0)
        self._backoff = Backoff()
        self._lock = trio.Lock()
        self._room = trio.Semaphore(UNDER_WAY_MAX)
        self._open: PackBatch | None = None
        self._under_way: list[PackBatch] = []

    # ------------------------------------------------------------------ put

    async def put(
        self, name: str, body: bytes, *, mode: int = MODE, mtime_ns: int | None = None
    ) -> Placed[PackBatch]:
        """Put a member into a pack: where it will lie. Waits while too much waits for S3.

        The time is by default now, in whole seconds. Raises UsageError for a name that cannot be one (the writer
        goes on), DiskFullError, and what S3 refused an earlier pack for.
        """
        about = self._about(mode, mtime_ns)
        async with self._lock:
            batch = await self._open_for(name, len(body), about)
            add = batch.content.add
            if len(body) > INLINE_BYTES_MAX:
                entry = await trio.to_thread.run_sync(add, name, body, about)
            else:
                entry = add(name, body, about)
            return self._placed(batch, entry)

    def try_put(
        self, name: str, body: bytes, *, mode: int = MODE, mtime_ns: int | None = None
    ) -> Placed[PackBatch]:
        """As ``put``, but raises PackFullError where that would wait."""
        about = self._about(mode, mtime_ns)
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise PackFullError("another task is just putting") from None
        try:
            if not self._takes(name, len(body), about):
                self._close_open()
                self._refuse_after_failure()
                try:
                    self._room.acquire_nowait()
                except trio.WouldBlock:
                    raise PackFullError(f"{UNDER_WAY_MAX} packs wait for S3") from None
                self._begin()
            assert self._open is not None
            return self._placed(self._open, self._open.content.add(name, body, about))
        finally:
            self._lock.release()

    async def put_file(
        self, name: str, file: BinaryIO, size: int, about: About
    ) -> Placed[PackBatch]:
        """Put ``size`` bytes of a file, read in a thread. Raises as ``put``, SourceError, SourceChangedError."""
        async with self._lock:
            batch = await self._open_for(name, size, about)
            # Not abandoned on cancellation: the batch is written to.
            entry = await trio.to_thread.run_sync(batch.content.add_file, name, file, size, about)
            return self._placed(batch, entry)

    async def add_member(self, entry: Entry, member: IO[bytes]) -> Placed[PackBatch]:
        """Put a member as another pack has it: its headers and body, filled up to whole blocks."""
        async with self._lock:
            batch = await self._open_bytes(entry.stop - entry.header)
            return self._placed(batch, batch.content.add_member(entry, member))

    async def delete(self, name: str, *, order: str = "") -> PackBatch:
        """Note that ``name`` is deleted, whatever earlier packs have of it. Raises as ``put``."""
        async with self._lock:
            batch = await self._open_bytes(0)
            batch.content.add_tombstone(name, order)
            return batch

    def _about(self, mode: int, mtime_ns: int | None) -> About:
        if mtime_ns is None:
            mtime_ns = self._clock.now_ns() // 10**9 * 10**9
        return About(mtime_ns, mode)

    def _placed(self, batch: PackBatch, entry: Entry) -> Placed[PackBatch]:
        if self._is_full(batch):
            self._close_open()
        return Placed(
            batch.bucket, batch.key, entry.name, entry.header, entry.body, entry.size, batch
        )

    # -------------------------------------------------------------- batches

    async def _open_for(self, name: str, size: int, about: About) -> PackBatch:
        if self._takes(name, size, about):
            assert self._open is not None
            return self._open
        return await self._open_anew()

    async def _open_bytes(self, more: int) -> PackBatch:
        if self._open is not None and self._has_room(self._open, more):
            return self._open
        return await self._open_anew()

    async def _open_anew(self) -> PackBatch:
        self._close_open()
        self._refuse_after_failure()
        await self._room.acquire()
        return self._begin()

    def _takes(self, name: str, size: int, about: About) -> bool:
        """Does the open pack take it? Raises UsageError for what none can take."""
        more = len(header_of(self._layout, name, size, about)) + padded(size)
        if more > MEMBER_BYTES_MAX:
            raise UsageError(f"{size} bytes are no small file, and more than a pack takes: use cp")
        batch = self._open
        return batch is not None and self._has_room(batch, more)

    def _has_room(self, batch: PackBatch, more: int) -> bool:
        content = batch.content
        if self._limits.windows:
            is_now = content.id.partition("-")[0] == self._window()
            return is_now and content.size + more <= MEMBER_BYTES_MAX
        return (
            content.size + more <= self._limits.bytes and len(content.entries) < self._limits.files
        )

    def _is_full(self, batch: PackBatch) -> bool:
        return not (self._limits.windows or self._has_room(batch, 1))

    def _window(self) -> str:
        now_ms = self._clock.now_ns() // 1_000_000
        return str(now_ms - now_ms % max(1, round((self._limits.seconds or 0) * 1000)))

    def _new_id(self) -> str:
        """Greater than all that this writer had before, whatever the clock says; of a window its beginning."""
        if self._limits.windows:
            window = self._window()
            is_first, self._last_ms = int(window) != self._last_ms, int(window)
            return window if is_first else f"{window}-{secrets.token_hex(4)}"
        self._last_ms = max(self._last_ms + 1, self._clock.now_ns() // 1_000_000)
        return f"{self._last_ms:013}-{secrets.token_hex(4)}"

    def _begin(self) -> PackBatch:
        batch_id = self._new_id()
        try:
            content = Batch(batch_id, f"{self._folder}{batch_id}.tar", self._layout)
        except BaseException:
            self._room.release()
            raise
        batch = PackBatch(self._bucket, content)
        self._open = batch
        self._under_way.append(batch)
        if self._limits.seconds is not None:
            self._nursery.start_soon(self._close_in_time, batch, self._limits.seconds)
        return batch

    async def _close_in_time(self, batch: PackBatch, seconds: float) -> None:
        if self._limits.windows:
            end_s = int(batch.content.id.partition("-")[0]) / 1000 + seconds
            seconds = max(0.0, end_s - self._clock.now_ns() / 1e9) + CLOCKS_DIFFER_S
        await trio.sleep(seconds)
        async with self._lock:
            if self._open is batch:
                self._close_open()

    def _close_open(self) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            self._nursery.start_soon(self._send, batch)

    def _refuse_after_failure(self) -> None:
        for batch in self._under_way:
            if batch.failure is not None:
                raise batch.failure

    # -------------------------------------------------------------- sending

    async def _send(self, batch: PackBatch) -> None:
        retry = 0
        while True:
            try:
                await send_pack(self._store, self._folder, batch, self._headers)
            except S3MountError as error:
                if self._gives_up or not error.retryable:
                    batch.failed(error)
                    return
                retry += 1
                after_s = error.retry_after_s if isinstance(error, StoreError) else None
                is_throttled = isinstance(error, ThrottledError)
                delay_s = self._backoff.delay_s(
                    retry, throttled=is_throttled, retry_after_s=after_s
                )
                await trio.sleep(delay_s)
                continue
            self._under_way.remove(batch)
            self._room.release()
            return

    async def flush(self) -> None:
        """Close the open pack, and return when S3 has all that was put. Repeatable; raises as ``close``."""
        async with self._lock:
            self._close_open()
        waiting = list(self._under_way)
        for batch in waiting:
            if batch.failure is not None and not self._gives_up:
                batch.again()
                self._nursery.start_soon(self._send, batch)
        failures = []
        for batch in waiting:
            try:
                await batch.wait()
            except S3MountError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def abandon(self) -> None:
        """Give up the local files of what S3 does not have, when nothing is under way any more. Repeatable."""
        for batch in self._under_way:
            batch.content.close()

    async def close(self) -> None:
        """As ``flush``: when it returns S3 has all that was put, durably.

        Raises the first of what S3 refused; such packs are kept, and the next call tries them again.
        """
        await self.flush()
