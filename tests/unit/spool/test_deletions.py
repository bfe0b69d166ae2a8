"""Many keys go by few requests, and nobody else's version goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from s3mount.errors import (
    AccessDeniedError,
    PreconditionFailedError,
    RejectedError,
    StoreError,
    ThrottledError,
)
from s3mount.refs import Capabilities, Key, ListPage, ObjectHeaders, VersionId
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.deletions import KEYS_MAX, Deletions
from s3mount.testing.memory_store import MemoryStore
from tests.sim.world import simulated


class Store(MemoryStore):
    """A store that may refuse batches, or lists."""

    refuses_batches: StoreError | None = None
    refuses_lists: StoreError | None = None

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        if self.refuses_batches is not None:
            raise self.refuses_batches
        return await super().delete_many(keys, version_ids=version_ids)

    async def list_page(self, prefix: str, **how: object) -> ListPage:
        if self.refuses_lists is not None:
            raise self.refuses_lists
        return await super().list_page(prefix, **how)  # type: ignore[arg-type]


@asynccontextmanager
async def gathering(
    store: MemoryStore, *, honours: bool | None = False, keeps_deleted: bool = False
) -> AsyncIterator[Deletions]:
    """Deletions in a store that does not honour If-Match."""
    known = KnownCapabilities(keeps_deleted=keeps_deleted)
    known.learn(Capabilities(delete_condition=honours))
    deletions = Deletions(store, known)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deletions.run)
        await trio.testing.wait_all_tasks_blocked()
        yield deletions
        nursery.cancel_scope.cancel()


async def filled(store: MemoryStore, count: int, folder: str = "folder") -> dict[Key, str]:
    """So many objects: their ETags."""
    etags = {}
    for number in range(count):
        key = f"{folder}/{number:05}"
        etags[key] = (await store.put(key, b"%d" % number, ObjectHeaders())).etag
    store.requests.clear()
    return etags


async def delete_all(
    deletions: Deletions, etags: dict[Key, str]
) -> dict[Key, PreconditionFailedError | ThrottledError]:
    """All at once; the errors."""
    errors = {}

    async def delete(key: Key, etag: str) -> None:
        try:
            await deletions.delete(key, if_match=etag)
        except (PreconditionFailedError, ThrottledError) as error:
            errors[key] = error

    async with trio.open_nursery() as nursery:
        for key, etag in etags.items():
            nursery.start_soon(delete, key, etag)
    return errors


@simulated
async def test_many_keys_cost_few_requests() -> None:
    store = Store()
    etags = await filled(store, 2 * KEYS_MAX + 500)
    async with gathering(store) as deletions:
        assert await delete_all(deletions, etags) == {}
    assert store.contents() == {}
    assert store.requests["delete_many"] == 3
    assert store.requests["list"] <= 9
    assert store.requests.keys() == {"delete_many", "list"}


@simulated
async def test_no_look_is_due_where_nothing_is_destroyed() -> None:
    store = Store(versioning="enabled")
    etags = await filled(store, 300)
    async with gathering(store, keeps_deleted=True) as deletions:
        assert await delete_all(deletions, etags) == {}
    assert store.contents() == {}
    assert store.requests == {"delete_many": 1}


@simulated
async def test_what_somebody_else_wrote_or_deleted_is_found() -> None:
    store = Store()
    etags = await filled(store, 50)
    await store.put("folder/00007", b"theirs", ObjectHeaders())
    await store.delete("folder/00008")
    async with gathering(store) as deletions:
        errors = await delete_all(deletions, etags)
    assert store.contents() == {"folder/00007": b"theirs"}
    assert errors.keys() == {"folder/00007"}
    assert store.requests["delete_many"] == 1


@simulated
async def test_each_goes_by_its_own_condition_where_that_is_honoured() -> None:
    store = Store()
    etags = await filled(store, 50)
    async with gathering(store, honours=None) as deletions:
        assert not deletions.are_gathered
    async with gathering(store, honours=True) as deletions:
        assert not deletions.are_gathered
        assert await delete_all(deletions, etags) == {}
    assert store.requests == {"delete": 50}


@simulated
async def test_a_few_among_many_foreign_keys_are_not_searched_for() -> None:
    store = Store()
    etags = await filled(store, 3000)
    wanted = {key: etags[key] for key in list(etags)[::300]}
    async with gathering(store) as deletions:
        assert await delete_all(deletions, wanted) == {}
        assert len(store.contents()) == 3000 - len(wanted)
        assert store.requests["list"] == 1
        await delete_all(deletions, {"folder/00001": etags["folder/00001"]})
    assert store.requests["list"] == 1, "one alone costs no list"


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_without_batches(status: int) -> None:
    async def main() -> None:
        store = Store()
        store.refuses_batches = RejectedError("not implemented", status=status)
        etags = await filled(store, 50)
        async with gathering(store) as deletions:
            assert await delete_all(deletions, etags) == {}
            assert not deletions.are_gathered
        assert store.contents() == {}

    simulated(main)()


@simulated
async def test_who_may_not_list_deletes_one_by_one() -> None:
    store = Store()
    store.refuses_lists = AccessDeniedError("no ListBucket", status=403)
    etags = await filled(store, 50)
    async with gathering(store) as deletions:
        assert await delete_all(deletions, etags) == {}
        assert deletions.are_gathered
    assert store.contents() == {}


@simulated
async def test_what_may_pass_is_told_to_all_who_wait() -> None:
    store = Store()
    store.refuses_batches = ThrottledError("slow down", status=503)
    etags = await filled(store, 50)
    async with gathering(store) as deletions:
        assert (await delete_all(deletions, etags)).keys() == etags.keys()
        store.refuses_batches = None
        assert await delete_all(deletions, etags) == {}
    assert store.contents() == {}


@simulated
async def test_who_gives_up_waiting_deletes_nothing() -> None:
    store = Store()
    etags = await filled(store, 1)
    async with gathering(store) as deletions:
        with trio.move_on_after(0):
            await delete_all(deletions, etags)
        await trio.sleep(10)
    assert len(store.contents()) == 1
