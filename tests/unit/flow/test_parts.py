from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.config import PART_BYTES_MAX, PART_BYTES_MIN
from s3mount.errors import UsageError
from s3mount.flow.parts import OBJECT_BYTES_MAX, PARTS_MAX, PartPlan

plans = st.integers(PART_BYTES_MIN, PART_BYTES_MAX).map(PartPlan)


@given(plan=plans)
def test_ten_thousand_parts_hold_the_greatest_object(plan: PartPlan) -> None:
    assert plan.count(OBJECT_BYTES_MAX) <= PARTS_MAX


@given(plan=plans, index=st.integers(0, PARTS_MAX))
def test_parts_follow_each_other_without_a_gap(plan: PartPlan, index: int) -> None:
    part, following = plan.part_range(index), plan.part_range(index + 1)
    assert part.stop == following.start
    assert PART_BYTES_MIN <= part.length <= following.length <= PART_BYTES_MAX
    assert plan.part_of(part.start) == index
    assert plan.part_of(part.stop - 1) == index
    assert plan.part_of(part.stop) == index + 1


@given(plan=plans, size=st.integers(1, OBJECT_BYTES_MAX))
def test_a_files_parts_cover_it(plan: PartPlan, size: int) -> None:
    count = plan.count(size)
    assert plan.part_range(count - 1).start < size <= plan.part_range(count - 1).stop


@given(
    part_bytes=st.integers(PART_BYTES_MIN, 64 << 20),
    size=st.integers(0, 3 << 30),
    more=st.integers(0, 1 << 30),
)
def test_parts_of_a_growing_file_keep_their_places(part_bytes: int, size: int, more: int) -> None:
    plan = PartPlan(part_bytes)
    before, after = list(plan.ranges(size)), list(plan.ranges(size + more))
    assert after[: max(0, len(before) - 1)] == before[:-1]
    assert sum(part.length for part in after) == size + more


def test_an_empty_file_has_one_part_and_no_bytes() -> None:
    plan = PartPlan(8 << 20)
    assert plan.count(0) == 1
    assert list(plan.ranges(0)) == []


def test_what_s3_would_refuse_is_refused() -> None:
    for part_bytes in (PART_BYTES_MIN - 1, PART_BYTES_MAX + 1):
        with pytest.raises(UsageError):
            PartPlan(part_bytes)
    with pytest.raises(ValueError, match="-1"):
        PartPlan(PART_BYTES_MIN).part_range(-1)
    with pytest.raises(ValueError, match="-1"):
        PartPlan(PART_BYTES_MIN).part_of(-1)
