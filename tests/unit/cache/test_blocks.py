from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.cache import blocks
from s3mount.cache.blocks import COMING, MISSING, PRESENT, BlockMap
from s3mount.config import GIB

KIB = 1 << 10
SHIFT = 16
BLOCK = 1 << SHIFT

states = st.lists(st.sampled_from([MISSING, PRESENT, COMING]), min_size=1, max_size=40)


def map_of(wanted: list[int], tail: int = BLOCK) -> BlockMap:
    made = BlockMap((len(wanted) - 1) * BLOCK + tail, SHIFT)
    for block, state in enumerate(wanted):
        if state != MISSING:
            made.claim(block, block + 1)
        if state == PRESENT:
            made.fill(block, block + 1)
    return made


def test_a_16_kib_read_needs_at_most_two_blocks_of_64_kib() -> None:
    made = BlockMap(GIB, blocks.shift_for(GIB))
    for offset in range(0, 4 * BLOCK, 4 * KIB):
        first, stop = made.span(offset, offset + 16 * KIB)
        assert made.disk_bytes(first, stop) <= 128 * KIB


def test_the_map_of_the_largest_object_is_small() -> None:
    size = 5 << 40
    assert ((size - 1) >> blocks.shift_for(size)) + 1 < 50e6


@given(states, st.integers(1, BLOCK), st.data())
def test_runs_and_cover_agree_with_a_plain_list(
    wanted: list[int], tail: int, data: st.DataObject
) -> None:
    made = map_of(wanted, tail)
    first = data.draw(st.integers(0, len(wanted) - 1))
    stop = data.draw(st.integers(first + 1, len(wanted)))
    assert made.covered(first, stop) == all(state == PRESENT for state in wanted[first:stop])
    assert made.whole == all(state == PRESENT for state in wanted)
    for state in (MISSING, PRESENT, COMING):
        runs = []
        position = first
        while run := made.next_run(state, position, stop):
            runs += list(range(*run))
            position = run[1]
        assert runs == [block for block in range(first, stop) if wanted[block] == state]


@given(states, st.integers(1, BLOCK))
def test_held_bytes_are_those_of_present_and_coming_blocks(wanted: list[int], tail: int) -> None:
    made = map_of(wanted, tail)
    held = sum(
        made.disk_bytes(block, block + 1) for block, state in enumerate(wanted) if state != MISSING
    )
    assert made.disk_bytes_held() == held
    stop = max(1, len(wanted) // 2)
    assert made.disk_bytes_in(COMING, 0, stop) == sum(
        made.disk_bytes(block, block + 1) for block in range(stop) if wanted[block] == COMING
    )
    assert made.disk_bytes(0, len(wanted)) == blocks.page_rounded(made.size)


@given(states)
def test_a_snapshot_holds_the_present_blocks_only(wanted: list[int]) -> None:
    made = map_of(wanted)
    packed = blocks.pack(made.snapshot())
    other = BlockMap(made.size, SHIFT)
    assert other.restore(blocks.unpack(packed))
    assert list(other.states) == [PRESENT if state == PRESENT else MISSING for state in wanted]
    assert other.present_count == wanted.count(PRESENT)


@given(states, st.data())
def test_merged_snapshots_are_the_union(one: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(one), max_size=len(one)))
    union = blocks.merged(map_of(one).snapshot(), bytes(other))
    assert list(union) == [int(a == PRESENT or b) for a, b in zip(one, other, strict=True)]


@given(states, st.data())
def test_changes_touch_only_blocks_in_the_right_state(
    wanted: list[int], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(wanted) - 1))
    stop = data.draw(st.integers(first + 1, len(wanted)))
    for change, old, new in (
        (BlockMap.claim, MISSING, COMING),
        (BlockMap.unclaim, COMING, MISSING),
        (BlockMap.fill, COMING, PRESENT),
        (BlockMap.empty, PRESENT, MISSING),
    ):
        made = map_of(wanted)
        change(made, first, stop)
        changed = [new if state == old else state for state in wanted[first:stop]]
        assert list(made.states) == wanted[:first] + changed + wanted[stop:]
        assert made.present_count == list(made.states).count(PRESENT)


def test_small_gaps_are_fetched_along_and_large_ones_are_not() -> None:
    made = map_of([MISSING, PRESENT, MISSING, COMING, MISSING, *[PRESENT] * 5, MISSING])
    assert made.next_fetch(0, 11, 100) == (0, 3)
    assert made.next_fetch(3, 11, 100) == (4, 5)
    assert made.next_fetch(5, 11, 100) == (10, 11)
    assert made.next_fetch(0, 11, 2) == (0, 2)
    assert made.next_fetch(5, 10, 100) is None
    assert map_of([MISSING, *[PRESENT] * 4, MISSING]).next_fetch(0, 6, 100) == (0, 6)


def test_what_is_present_can_be_forgotten_while_blocks_are_coming() -> None:
    made = map_of([PRESENT, COMING, MISSING])
    made.forget_present()
    assert list(made.states) == [MISSING, COMING, MISSING]
    assert made.present_count == 0


@pytest.mark.parametrize("damaged", [b"", b"\1", b"\1\1\7", b"\1\1\1\1"])
def test_a_damaged_snapshot_is_refused(damaged: bytes) -> None:
    made = BlockMap(3 * BLOCK, SHIFT)
    assert not made.restore(damaged)
    assert made.present_count == 0
    assert blocks.unpack(b"nonsense") == b""
