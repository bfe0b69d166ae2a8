from __future__ import annotations

import itertools
import random

from s3mount.cache.readahead import (
    RANGE_BYTES_MAX,
    SLACK_BYTES,
    WINDOW_BYTES_MAX,
    ReadaheadWindow,
    plan,
)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
BLOCK = 64 * KIB


def ahead(
    window: ReadaheadWindow,
    offset: int,
    length: int,
    size: int = GIB,
    share: int = WINDOW_BYTES_MAX,
) -> list[tuple[int, int]]:
    stream = window.observe(offset, offset + length)
    return [] if stream is None else plan(stream, offset, size, share, BLOCK)


def total(ranges: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def test_random_reads_ask_for_nothing_ahead() -> None:
    rnd = random.Random(1)
    window = ReadaheadWindow()
    wanted = sum(
        total(ahead(window, rnd.randrange(GIB // 16384) * 16384, 16 * KIB)) for _ in range(400)
    )
    # Now and then two of them lie near each other by chance.
    assert wanted < 400 * 16 * KIB


def test_a_look_at_the_header_asks_for_nothing_ahead() -> None:
    assert ahead(ReadaheadWindow(), 0, 16 * KIB) == []


def test_the_second_read_from_the_start_begins_to_read_ahead() -> None:
    window = ReadaheadWindow()
    ahead(window, 0, 16 * KIB)
    ranges = ahead(window, 16 * KIB, 32 * KIB)
    assert MIB <= total(ranges) <= 4 * MIB
    assert len(ranges) >= 2


def test_a_large_first_read_is_believed_at_once() -> None:
    assert total(ahead(ReadaheadWindow(), 0, 256 * KIB)) >= MIB


def test_the_window_grows_to_several_ranges_in_a_few_steps_and_no_further() -> None:
    window = ReadaheadWindow()
    position = end = 0
    sizes = []
    while position < 512 * MIB:
        ranges = ahead(window, position, MIB)
        for start, stop in ranges:
            assert start == end
            assert stop - start <= RANGE_BYTES_MAX * 3 // 2
            assert position < 32 * MIB or stop % RANGE_BYTES_MAX == 0
            end = stop
        position += MIB
        sizes.append(end - position)
    assert max(sizes) <= WINDOW_BYTES_MAX
    assert min(sizes[32:]) >= WINDOW_BYTES_MAX - RANGE_BYTES_MAX - MIB
    # Before 20 MiB are read, eight ranges are on their way.
    assert sizes[20] > 8 * RANGE_BYTES_MAX - MIB


def test_reads_out_of_order_are_still_one_stream() -> None:
    rnd = random.Random(2)
    offsets = [index * 256 * KIB for index in range(400)]
    for start in range(0, len(offsets), 4):
        group = offsets[start : start + 4]
        rnd.shuffle(group)
        offsets[start : start + 4] = group
    window = ReadaheadWindow()
    ranges = [one for offset in offsets for one in ahead(window, offset, 256 * KIB)]
    assert len(window.streams) == 1
    assert max(stop for _, stop in ranges) >= offsets[-1] + WINDOW_BYTES_MAX // 2


def test_a_seek_begins_anew_and_the_old_place_is_remembered() -> None:
    window = ReadaheadWindow()
    for index in range(32):
        ahead(window, index * MIB, MIB)
    assert ahead(window, 700 * MIB, 16 * KIB) == []
    assert sum(total(ahead(window, index * MIB, MIB)) for index in range(32, 48)) >= 8 * MIB


def test_the_fourth_place_replaces_the_oldest() -> None:
    window = ReadaheadWindow()
    for place in range(4):
        ahead(window, (place + 1) * 100 * MIB, 16 * KIB)
    assert window.dropped is not None
    assert window.dropped.position == 100 * MIB + 16 * KIB
    assert len(window.streams) == 3


def test_reading_backwards_asks_for_nothing() -> None:
    window = ReadaheadWindow()
    assert sum(total(ahead(window, offset, 128 * KIB)) for offset in range(512 * MIB, 0, -MIB)) == 0


def test_nothing_is_asked_beyond_the_end_nor_twice() -> None:
    size = 20 * MIB + 123
    window = ReadaheadWindow()
    seen: list[tuple[int, int]] = []
    for offset in range(0, size, 128 * KIB):
        seen += ahead(window, offset, min(128 * KIB, size - offset), size)
    assert seen[-1][1] == size
    assert all(one[1] == other[0] for one, other in itertools.pairwise(seen))


def test_the_share_bounds_the_window() -> None:
    window = ReadaheadWindow()
    end = 0
    for offset in range(0, 64 * MIB, MIB):
        for _, end in ahead(window, offset, MIB, share=4 * MIB):
            assert end <= offset + MIB + 4 * MIB


def test_a_reader_that_skips_far_is_not_sequential() -> None:
    window = ReadaheadWindow()
    step = SLACK_BYTES + 2 * MIB
    assert sum(total(ahead(window, step * (index + 1), 16 * KIB)) for index in range(100)) == 0
