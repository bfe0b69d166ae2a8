"""Members of packs as bytes: neighbours come by one range, several ranges are under way, and memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from s3mount.bulk.reading import Piece, pieces_between, read_in_order
from s3mount.bulk.running import OneByOne
from s3mount.refs import ContentRef
from s3mount.s3.store import Store

GAP_BYTES_MAX = 64 << 10
"""What lies between two members is fetched with them up to this size: less than a request costs in time."""


class Span(NamedTuple):
    """Bytes of a pack that are wanted: of the member number ``position`` of its index."""

    start: int
    length: int
    position: int

    @property
    def stop(self) -> int:
        """The first offset behind it."""
        return self.start + self.length


class Sink(Protocol):
    """Takes the bytes of one span, in order. What goes wrong with them it keeps until ``end``."""

    def write(self, data: memoryview) -> None:
        """The next bytes, which are overwritten afterwards."""
        ...

    async def end(self) -> None:
        """All came. Raises what nothing else of the command would survive."""
        ...

    def drop(self) -> None:
        """No more will come."""
        ...


def groups(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Spans that are fetched by one range, from the start of the first to the stop of the last.

    They come in the order of their starts. Such as overlap, as the names of one file do, are not in one group.

    >>> [len(g) for g in groups([Span(0, 10, 0), Span(512, 10, 1), Span(512, 10, 2), Span(1 << 20, 5, 3)])]
    [2, 1, 1]
    """
    group: list[Span] = []
    for span in spans:
        if group and not 0 <= span.start - group[-1].stop <= GAP_BYTES_MAX:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


async def read_spans(
    store: Store, pack: ContentRef, spans: Iterable[Span], begin: Callable[[Span], Sink]
) -> None:
    """Give each span's bytes, at least one, to a sink of its own, one after the other.

    Raises the store's errors: NoSuchKeyError and PreconditionFailedError where the pack is gone or another one.
    """
    pieces: list[Piece] = []
    wanted: deque[deque[Span]] = deque()
    for group in groups(sorted(spans)):
        left = deque(group)
        for piece in pieces_between(store, pack, group[0].start, group[-1].stop):
            pieces.append(piece)
            wanted.append(left)
    sink: Sink | None = None

    async def consume(piece: Piece, data: memoryview) -> None:
        nonlocal sink
        left = wanted.popleft()
        end = piece.start + piece.length
        while left and left[0].start < end:
            span = left[0]
            if sink is None:
                sink = begin(span)
            sink.write(data[max(0, span.start - piece.start) : span.stop - piece.start])
            if span.stop > end:
                return
            left.popleft()
            ending, sink = sink, None
            await ending.end()

    try:
        await read_in_order(OneByOne(pieces), consume)
    finally:
        if sink is not None:
            sink.drop()
