"""From flat keys to listings: the same as one listing with a delimiter for each directory."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.refs import ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from s3mount.tree.flat_to_dirs import FlatToDirs
from s3mount.tree.listing import Listing, list_directory

PARTS = st.sampled_from(
    ["a", "b", "a.x", "a-b", "a b", "", ".", "..", "é", "0", "n" * 300, "a\U0010ffff"]
)
KEYS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)


@settings(max_examples=150, deadline=None)
@given(st.sets(KEYS.filter(lambda key: 0 < len(key) < 900), max_size=25))
def test_every_directory_is_listed_as_by_itself(keys: set[str]) -> None:
    async def run() -> None:
        store = MemoryStore()
        for key in keys:
            await store.put(f"top/{key}", key.encode(), ObjectHeaders())
        unroller: FlatToDirs[int] = FlatToDirs("top/")
        found: dict[str, Listing] = {}
        token = None
        page_number = 0
        while True:
            page = await store.list_page("top/", token=token, max_keys=3)
            for info in page.objects:
                for done in unroller.add(info, page_number):
                    assert done.prefix not in found
                    found[done.prefix] = done.listing
            token = page.next_token
            page_number += 1
            if token is None:
                break
        for done in unroller.finish():
            found[done.prefix] = done.listing
        waiting = ["top/"]
        expected: dict[str, Listing] = {}
        while waiting:
            prefix = waiting.pop()
            expected[prefix] = await list_directory(store, prefix)
            waiting += [f"{prefix}{name}/" for name in expected[prefix].directories]
        del expected["top/"]
        assert found.keys() == expected.keys()
        for prefix, listing in expected.items():
            assert found[prefix].files == listing.files
            assert found[prefix].directories == listing.directories
            assert found[prefix].marker == listing.marker
            assert sorted(found[prefix].ignored) == sorted(listing.ignored)

    trio.run(run)
