"""Objects as bytes in their order: ranges are fetched in parallel, and no more of them than fit into a few buffers."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import NamedTuple

import trio

from s3mount.errors import PreconditionFailedError
from s3mount.refs import ByteRange, ContentRef, FileSlice
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.tasks import first_error

RANGE_BYTES = 8 << 20
RANGES_AHEAD = 8
"""So many ranges are under way or wait for their turn: 64 MiB."""


class Piece(NamedTuple):
    """A range of an object, or a whole empty one."""

    store: Store
    source: ContentRef
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Does the object end with it?"""
        return self.start + self.length >= self.source.size


def pieces_of(store: Store, source: ContentRef) -> Iterator[Piece]:
    """All of an object, in order; of an empty one a piece of no bytes."""
    return pieces_between(store, source, 0, max(source.size, 1))


def pieces_between(store: Store, source: ContentRef, start: int, stop: int) -> Iterator[Piece]:
    """An object's bytes from ``start`` on, before ``stop``."""
    for begin in range(start, stop, RANGE_BYTES):
        yield Piece(store, source, begin, min(RANGE_BYTES, stop - begin, source.size - begin))


Consume = Callable[[Piece, memoryview], Awaitable[None]]
"""Takes the bytes of a piece, which are overwritten afterwards."""


class _Arrival(NamedTuple):
    piece: Piece
    slot: int
    there: trio.Event


async def read_in_order(pieces: AsyncIterable[Piece], consume: Consume) -> None:
    """Give ``consume`` each piece's bytes, in order. Each is read of exactly the version that it names.

    Raises the store's errors (PreconditionFailedError where an object is another one by now), and what
    ``consume`` raises.
    """
    with _ring() as (path, ring):
        free, slots = trio.open_memory_channel[int](RANGES_AHEAD)
        for slot in range(RANGES_AHEAD):
            free.send_nowait(slot)
        send, arrivals = trio.open_memory_channel[_Arrival](RANGES_AHEAD)

        async def fetch(arrival: _Arrival) -> None:
            await _fetch(arrival.piece, path, ring, arrival.slot * RANGE_BYTES)
            arrival.there.set()

        async def begin_all(nursery: trio.Nursery) -> None:
            async for piece in pieces:
                arrival = _Arrival(piece, await slots.receive(), trio.Event())
                await send.send(arrival)
                nursery.start_soon(fetch, arrival)
            send.close()

        with free, slots, send, arrivals, first_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin_all, nursery)
                async for arrival in arrivals:
                    await arrival.there.wait()
                    begin = arrival.slot * RANGE_BYTES
                    with memoryview(ring)[begin : begin + arrival.piece.length] as view:
                        await consume(arrival.piece, view)
                    free.send_nowait(arrival.slot)


async def _fetch(piece: Piece, path: str, ring: mmap.mmap, offset: int) -> None:
    """The bytes of ``piece`` at ``offset`` of the ring."""
    source = piece.source
    if piece.length <= INLINE_BODY_BYTES_MAX:
        part = ByteRange(piece.start, piece.length) if piece.length < source.size else None
        info, data = await piece.store.get(
            source.key, byte_range=part, version_id=source.version_id, if_match=source.etag or None
        )
        ring[offset : offset + len(data)] = data
        is_whole = len(data) == piece.length
    else:
        info = await piece.store.fetch(
            source.key,
            ByteRange(piece.start, piece.length),
            FileSlice(path, offset, piece.length),
            version_id=source.version_id,
            if_match=source.etag or None,
        )
        is_whole = True
    if info.size != source.size or not is_whole:
        raise PreconditionFailedError("the object is another one by now", key=source.key)


@contextlib.contextmanager
def _ring() -> Iterator[tuple[str, mmap.mmap]]:
    """Memory that the engine process can write to by a path; it has no other name."""
    descriptor = os.memfd_create("s3mount-ranges", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, RANGES_AHEAD * RANGE_BYTES)
        with mmap.mmap(descriptor, RANGES_AHEAD * RANGE_BYTES) as ring:
            yield f"/proc/{os.getpid()}/fd/{descriptor}", ring
    finally:
        os.close(descriptor)
