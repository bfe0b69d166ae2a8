"""The read-ahead window: how far ahead of a reader bytes are fetched. Decides, without I/O.

A handle's reads fall into streams: places where somebody reads on. The window of a stream,
how far ahead of the reader bytes are asked for, is a multiple of what was read there in a row,
so that it grows by itself while the reading goes on, at most doubles what is fetched in vain
a few times, and is nothing for random reads.
"""

from __future__ import annotations

from s3mount.config import MIB

RANGE_BYTES_MAX = 8 * MIB
"""One fetch. 8 MiB ranges, 8 in flight, saturate a connection with a round trip of 20 ms."""
WINDOW_BYTES_MAX = 96 * MIB
"""Per stream: eight ranges in flight, and some that have arrived and wait for the reader."""
GROWTH = 4
"""The window is this many times the bytes read in a row: five times as far with each round trip."""
START_RUN_BYTES = MIB // 2
"""A reader that begins at offset 0 and goes on is trusted as if it had read this much."""
START_READ_BYTES_MIN = 128 * 1024
"""A first read at offset 0 of this size is trusted at once: the kernel asks for that much only
for a program that reads in large pieces; for a look at the header it asks for 16 KiB."""
SLACK_BYTES = 4 * MIB
"""Requests of one sequential reader arrive out of order by no more than this: the kernel keeps
a few of at most 1 MiB in flight, and a page fault reads around itself. A stream that has only
begun gets less (SLACK_BEGIN_BYTES, and twice what was read), or random reads would meet by chance."""
SLACK_BEGIN_BYTES = 128 * 1024
STREAMS_MAX = 3
"""Places one handle is read at in turns (columns of a file, both ends of a merge)."""


class ReadStream:
    """One place where a handle is read.

    ``position``: end of what was read, ``run_bytes``: read in a row up to there,
    ``requested``: end of what has been asked for ahead.
    """

    __slots__ = ("last_plan_s", "position", "requested", "run_bytes", "trusted")

    def __init__(self, offset: int) -> None:
        self.position = offset
        self.requested = offset
        self.run_bytes = 0
        self.trusted = offset == 0
        self.last_plan_s = 0.0


class ReadaheadWindow:
    """The streams of one handle."""

    __slots__ = ("dropped", "jumped", "streams")

    def __init__(self) -> None:
        self.streams: list[ReadStream] = []
        self.jumped = False
        """The latest read began a new stream."""
        self.dropped: ReadStream | None = None
        """The stream that had to make room in the latest ``observe``, for the caller to forget."""

    def observe(self, offset: int, stop: int) -> ReadStream | None:
        """Note a read; the stream that went on by it, or ``None`` when nothing is to be planned."""
        streams = self.streams
        self.dropped = None
        self.jumped = False
        for index, stream in enumerate(streams):
            position = stream.position
            slack = SLACK_BEGIN_BYTES + 2 * stream.run_bytes
            if slack > SLACK_BYTES:
                slack = SLACK_BYTES
            if position - slack <= offset <= position + slack:
                if index:
                    del streams[index]
                    streams.insert(0, stream)
                if stop <= position:
                    return None
                stream.run_bytes += stop - (offset if offset > position else position)
                stream.position = stop
                if stream.trusted and stream.run_bytes < START_RUN_BYTES:
                    stream.run_bytes = START_RUN_BYTES
                return stream
        self.jumped = True
        stream = ReadStream(offset)
        stream.position = stop
        stream.run_bytes = stop - offset
        if offset == 0 and stop >= START_READ_BYTES_MIN:
            stream.run_bytes = max(START_RUN_BYTES, stop)
        streams.insert(0, stream)
        if len(streams) > STREAMS_MAX:
            self.dropped = streams.pop()
        return stream if stream.run_bytes >= START_RUN_BYTES and offset == 0 else None

    def kept_ranges(self) -> list[tuple[int, int]]:
        """Bytes around the streams that a reader is about to ask for (or just asked for)."""
        return [
            (stream.position - SLACK_BYTES // 4, max(stream.position, stream.requested))
            for stream in self.streams
        ]


def plan(
    stream: ReadStream, offset: int, size: int, window_bytes_max: int, block_bytes: int
) -> list[tuple[int, int]]:
    """The byte ranges to ask for now so that the stream's window is filled; often none.

    ``offset`` is where the latest read began: what lies before it is not asked for. Ranges cut the
    window at least in two, so that they travel in parallel from the start. They end at multiples
    of their length, a power of two up to RANGE_BYTES_MAX, so that they lie well in the parts that
    stores keep objects in; only the first may be up to half as long again. Notes them as requested.
    """
    window = min(stream.run_bytes * GROWTH, window_bytes_max)
    if window < 2 * block_bytes:
        return []
    step = min(1 << ((window // 2).bit_length() - 1), RANGE_BYTES_MAX)
    target = min(stream.position + window, size)
    start = max(stream.requested, offset)
    if start >= target:
        return []
    start = start // block_bytes * block_bytes
    ranges = []
    while start < target:
        stop = (start // step + 1) * step
        if stop - start < step // 2:
            stop += step
        if stop > target:
            if target < size:
                break
            stop = size
        ranges.append((start, stop))
        start = stop
    stream.requested = max(stream.requested, start)
    return ranges
