from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.flow.parts import PartPlan
from s3mount.refs import PartInfo
from s3mount.transfer.ledger import PartLedger

PLAN = PartPlan(5 << 20)
PART = 5 << 20


def part(index: int, size: int = PART) -> PartInfo:
    return PartInfo(index + 1, f"{index:032x}", size)


def test_a_growing_file_keeps_the_parts_that_were_sent() -> None:
    ledger = PartLedger(PLAN)
    ledger.confirm(part(1))
    ledger.confirm(part(0))
    assert ledger.missing(2 * PART) == []
    assert ledger.missing(2 * PART + 1) == [2]
    ledger.confirm(part(2, 1))
    assert ledger.missing(2 * PART + 1) == []
    assert ledger.missing(3 * PART) == [2]  # the last part was shorter than it is now
    assert [p.number for p in ledger.to_complete(2 * PART + 1)] == [1, 2, 3]


def test_a_shrunken_file_lacks_its_new_tail_and_has_parts_too_many() -> None:
    ledger = PartLedger(PLAN)
    for index in range(4):
        ledger.confirm(part(index))
    assert ledger.superfluous(2 * PART - 7) == [2, 3]
    assert ledger.missing(2 * PART - 7) == [1]
    with pytest.raises(ValueError, match="not sent yet"):
        ledger.to_complete(2 * PART - 7)
    assert ledger.superfluous(0) == [1, 2, 3]
    assert ledger.missing(0) == [0]


def test_a_part_outside_the_file_is_refused() -> None:
    with pytest.raises(ValueError, match="has no part 2"):
        PartLedger(PLAN).part_range(2, 2 * PART)


@given(st.integers(0, 12 * PART), st.sets(st.integers(0, 11)))
def test_missing_and_confirmed_parts_make_up_the_file(size: int, sent: set[int]) -> None:
    ledger = PartLedger(PLAN)
    count = PLAN.count(size)
    for index in sent & set(range(count)):
        ledger.confirm(part(index, ledger.part_range(index, size).length))
    for index in ledger.missing(size):
        assert index not in sent
        ledger.confirm(part(index, ledger.part_range(index, size).length))
    parts = ledger.to_complete(size)
    assert [p.number for p in parts] == list(range(1, count + 1))
    assert sum(p.size for p in parts) == size
