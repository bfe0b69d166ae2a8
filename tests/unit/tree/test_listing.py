"""Large directories: parted into ranges that are listed side by side, exactly."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.refs import ListPage, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from s3mount.tree.key_split import NameShape
from s3mount.tree.listing import Listing, list_directory
from s3mount.tree.names import is_name
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


def cost_of(names: Iterable[str]) -> tuple[float, int]:
    """Round trips and requests that listing these names takes, a thousand a page."""

    async def run() -> tuple[float, int]:
        store = MemoryStore()
        put = {f"d/{name}" for name in names}
        for key in put:
            await store.put(key, b"", ObjectHeaders())
        store.faults = Script(latency_s=1.0)
        before = trio.current_time()
        listing = await list_directory(store, "d/")
        assert {info.key for info in listing.files.values()} == put
        return trio.current_time() - before, store.requests["list"]

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_many_pages_are_on_their_way_at_once() -> None:
    """100,000 names are 100 pages: one after the other that would be 100 round trips."""
    round_trips, requests = cost_of(f"f{number:05}.bin" for number in range(100_000))
    assert round_trips <= 25
    # Answers of one instant come in any order: 116 to 123 were seen in 60 runs.
    assert requests <= 130, (
        "a range's end is listed twice, and guesses that part nothing cost a request each"
    )


SYLLABLES = ["ba", "che", "do", "ke", "li", "mu", "na", "po", "ri", "sa", "te", "vo", "xe", "zi"]
KINDS: dict[str, Callable[[int, random.Random], str]] = {
    "numbers": lambda n, rng: f"img_{n}.jpg",
    "hashes": lambda n, rng: rng.randbytes(32).hex(),
    "uuids": lambda n, rng: f"part-{uuid.UUID(int=rng.getrandbits(128))}.parquet",
    "words": lambda n, rng: "".join(rng.choices(SYLLABLES, k=1 + n % 5)) + f".{n}",
    "times": lambda n, rng: f"{datetime.fromtimestamp(1.7e9 + 999 * n, UTC):log-%Y-%m-%dT%H:%M}.gz",
    "two": lambda n, rng: f"{['train', 'valid'][n % 2]}_{n // 2:07}.npy",
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_names_look_like(kind: str) -> None:
    rng = random.Random(6)
    round_trips, requests = cost_of(KINDS[kind](n, rng) for n in range(20_000))
    assert round_trips <= 16, "20 pages"
    assert requests <= 36


def test_little_is_guessed_about_a_directory_that_soon_ends() -> None:
    round_trips, requests = cost_of(f"f{number:04}" for number in range(5000))
    assert round_trips <= 6
    assert requests <= 8


class Shuffled(MemoryStore):
    """Lists in no order, as S3 Express does, and so cannot begin anywhere."""

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        assert start_after is None
        whole = await super().list_page(prefix, delimiter=delimiter)
        objects = sorted(whole.objects, key=lambda info: hashlib.md5(info.key.encode()).digest())
        begin = int(token or 0)
        end = begin + max_keys
        rest = str(end) if end < len(objects) else None
        return ListPage(tuple(objects[begin:end]), (), rest)


@pytest.mark.parametrize("page_keys", [50, 1])
def test_a_store_that_lists_in_no_order_is_not_asked_for_ranges(page_keys: int) -> None:
    """Though a page of one name is in order."""

    async def run() -> Listing:
        store = Shuffled()
        for number in range(900):
            await store.put(f"d/{number:04}", b"", ObjectHeaders())
        return await list_directory(store, "d/", page_keys=page_keys)

    assert len(trio.run(run).files) == 900


@given(names=st.sets(NAMES.filter(is_name), min_size=2), stop=st.none() | NAMES.filter(is_name))
def test_a_point_lies_between_what_is_known_and_the_stop(names: set[str], stop: str | None) -> None:
    shape = NameShape()
    shape.learn(names)
    found = shape.parting(min(names), max(names), stop)
    if found is not None:
        assert max(names) < found.point
        assert stop is None or found.point < stop
