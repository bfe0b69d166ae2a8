"""Large directories: parted into ranges that are listed side by side, exactly."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.refs import ObjectHeaders
from s3mount.s3.memory import MemoryStore
from s3mount.tree.listing import Listing, list_directory, split_points
from tests.unit.vfs.scripted import Script

NAMES = st.one_of(
    st.from_regex(r"f[0-9]{4}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{4}", fullmatch=True),
    st.from_regex(r"[a-c0/. é-]{1,6}", fullmatch=True),
    st.sampled_from(["", "..", "x//y", "f1", "f1/", "f1/a", "f10", "f\U0010ffff", "f1\x01"]),
)


@settings(max_examples=150, deadline=None)
@given(names=st.sets(NAMES, max_size=60), page_keys=st.integers(2, 9))
def test_it_is_as_listed_page_by_page(names: set[str], page_keys: int) -> None:
    async def run() -> tuple[Listing, Listing]:
        store = MemoryStore()
        for name in names:
            await store.put(f"d/{name}", b"x", ObjectHeaders())
        return await list_directory(store, "d/", page_keys=page_keys), await list_directory(
            store, "d/"
        )

    parted, whole = trio.run(run)
    assert parted.files == whole.files
    assert list(parted.directories - whole.directories) == []
    assert parted.directories == whole.directories
    assert parted.marker == whole.marker
    assert sorted(parted.ignored) == sorted(whole.ignored)


def test_many_pages_are_on_their_way_at_once() -> None:
    """100,000 names are 100 pages: one after the other that would be 100 round trips."""

    async def run() -> tuple[int, float, int]:
        store = MemoryStore()
        for number in range(100_000):
            await store.put(f"d/f{number:05}.bin", b"", ObjectHeaders())
        store.faults = Script(latency_s=1.0)
        before = trio.current_time()
        listing = await list_directory(store, "d/")
        return len(listing.files), trio.current_time() - before, store.requests["list"]

    clock = trio.testing.MockClock(autojump_threshold=0)
    count, round_trips, requests = trio.run(run, clock=clock)
    assert count == 100_000
    assert round_trips <= 40
    assert requests <= 100 + 10, "guesses that part nothing cost a request each"


def test_points_lie_behind_what_is_known() -> None:
    for names in ([f"{n:08x}" for n in range(1000)], ["a", "b"], ["zzz"], ["é", "ü"], []):
        points = split_points(names)
        assert points == sorted(points)
        assert all(point > names[-1] for point in points)
