"""Extents against a plain set of offsets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3mount.spool.blobs.extents import Extents

RANGES = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
STEPS = st.lists(st.tuples(st.sampled_from(("add", "cut", "remove")), RANGES), max_size=14)


@given(STEPS, RANGES)
def test_extents_behave_as_a_set_of_offsets(
    steps: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    extents = Extents()
    model: set[int] = set()
    for step, (start, stop) in steps:
        if step == "cut":
            extents.cut(start)
            model = {offset for offset in model if offset < start}
        elif step == "remove":
            extents.remove(start, stop)
            model -= set(range(start, stop))
        else:
            extents.add(start, stop)
            model |= set(range(start, stop))
        assert extents.total == len(model)
        ranges = list(extents)
        assert {o for a, b in ranges for o in range(a, b)} == model
        assert all(ranges[i][1] < ranges[i + 1][0] for i in range(len(ranges) - 1))
    wanted = set(range(*asked))
    assert extents.covers(*asked) == (wanted <= model)
    assert extents.touches(*asked) == bool(wanted & model)
    assert {o for a, b in extents.missing(*asked) for o in range(a, b)} == wanted - model
