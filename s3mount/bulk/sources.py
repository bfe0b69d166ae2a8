"""Bytes to upload that are not on this machine: of another store, or of a stream that nobody knows the end of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, NamedTuple, TypeAlias

import trio

from s3mount.bulk.running import for_each
from s3mount.errors import DiskFullError, PartSizeError, SourceError
from s3mount.flow.parts import PARTS_MAX, PartPlan
from s3mount.refs import (
    ANY,
    Body,
    ByteRange,
    Condition,
    FileSlice,
    Key,
    ObjectHeaders,
    PutResult,
)
from s3mount.s3.store import Store
from s3mount.transfer.fetching import Wanted
from s3mount.transfer.multipart import abort_quietly
from s3mount.transfer.parts import PartsUpload
from s3mount.transfer.scratch import path_of, scratch, temporary

READ_BYTES = 1 << 20
STREAMED_PARTS_MAX = 4
"""Parts of a stream that lie on the disk at once, until S3 has them."""

Read: TypeAlias = Callable[[int], Awaitable[bytes]]
"""Gives up to so many bytes of a stream, none at its end. Raises SourceError."""


class StoreSource:
    """A version in another store, whose bytes come through here."""

    is_local = False

    def __init__(self, store: Store, wanted: Wanted, size: int) -> None:
        self._store = store
        self._wanted = wanted
        self.size = size

    async def state(self) -> str:
        """See ``Source.state``: it is asked for by its ETag, and cannot change."""
        await trio.lowlevel.checkpoint()
        return f"{self._wanted.etag} {self._wanted.version_id} {self.size}"

    @asynccontextmanager
    async def part(self, span: ByteRange) -> AsyncIterator[Body]:
        """See ``Source.part``."""
        if not span.length:
            yield b""
            return
        wanted = self._wanted
        with scratch() as (file, path):
            file.truncate(span.length)
            sink = FileSlice(path, 0, span.length)
            info = await self._store.fetch(
                wanted.key, span, sink, version_id=wanted.version_id, if_match=wanted.pin
            )
            wanted.completed(info)
            yield sink


class _Piece(NamedTuple):
    """Bytes of a stream in a file without a name."""

    position: int
    file: BinaryIO
    length: int

    @property
    def body(self) -> Body:
        """As they are sent."""
        return FileSlice(path_of(self.file), 0, self.length) if self.length else b""


class _Pieces:
    """The parts of a stream, the first of which was read already, until it ends."""

    def __init__(self, first: _Piece, read: Read, plan: PartPlan) -> None:
        self._next: _Piece | None = first
        self._read = read
        self._plan = plan
        self.size = 0

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> _Piece:
        piece, self._next = self._next, None
        if piece is None or not piece.length:
            raise StopAsyncIteration
        if piece.position >= PARTS_MAX:
            raise PartSizeError(f"it has more than {PARTS_MAX:,} parts: use larger ones")
        self.size += piece.length
        if piece.length == self._plan.part_range(piece.position).length:
            self._next = await _read_piece(self._read, self._plan, piece.position + 1)
        return piece


async def upload_stream(
    store: Store,
    read: Read,
    key: Key,
    headers: ObjectHeaders,
    *,
    plan: PartPlan,
    slots: trio.CapacityLimiter,
    condition: Condition = ANY,
    on_sent: Callable[[int], None],
) -> tuple[PutResult, int]:
    """Upload what ``read`` gives until it gives nothing: the result, and the size.

    What fits into one part is one PUT. Nothing is left behind when it
    fails or is cancelled, unless the store cannot be reached for that. Raises the store's errors, SourceError,
    LocalDiskError, and PartSizeError for more than 10,000 parts.
    """
    first = await _read_piece(read, plan, 0)
    if first.length < plan.part_bytes:
        with first.file:
            async with slots:
                result = await store.put(key, first.body, headers, condition=condition)
        on_sent(first.length)
        return result, first.length
    upload = PartsUpload(key, plan)
    pieces = _Pieces(first, read, plan)

    async def send(piece: _Piece) -> None:
        with piece.file:
            async with slots:
                part = await store.upload_part(
                    key, upload.upload_id, piece.position + 1, piece.body
                )
        upload.arrived(piece.position, part)
        on_sent(piece.length)

    try:
        upload.upload_id = await store.create_multipart(key, headers)
        await for_each(pieces, send, workers=STREAMED_PARTS_MAX)
        parts = upload.finished_parts(pieces.size)
        assert parts is not None
        result = await store.complete_multipart(key, upload.upload_id, parts, condition=condition)
    except BaseException:
        await abort_quietly(store, upload)
        raise
    return result, pieces.size


async def _read_piece(read: Read, plan: PartPlan, index: int) -> _Piece:
    """The next part of a stream; shorter than planned at its end, and empty behind it."""
    most = plan.part_range(index).length
    file = temporary()
    length = 0
    try:
        while length < most and (data := await read(min(READ_BYTES, most - length))):
            file.write(data)
            length += len(data)
        file.flush()
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise DiskFullError(f"a temporary file cannot be written: {error}") from error
        raise
    return _Piece(index, file, length)


def from_file(file: BinaryIO) -> Read:
    """What a blocking file or pipe gives."""

    def blocking(n: int) -> bytes:
        try:
            return file.read(n)
        except OSError as error:
            raise SourceError(f"it cannot be read: {error.strerror}") from error

    async def read(n: int) -> bytes:
        return await trio.to_thread.run_sync(blocking, n, abandon_on_cancel=True)

    return read
