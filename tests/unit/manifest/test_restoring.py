from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.clock import ManualClock
from s3mount.errors import NetworkError, RejectedError, UsageError
from s3mount.manifest.building import list_entries
from s3mount.manifest.model import Entry
from s3mount.manifest.restoring import Plan, Progress, Step, carry_out, folders_of, plan_restore
from s3mount.refs import ObjectHeaders
from s3mount.s3.memory import MemoryStore

keys = st.sampled_from(["a", "b/1", "b/2", "c\n", "é", "z/z"])
writes = st.lists(st.tuples(keys, st.sampled_from(["put", "put", "delete", "chmod"])), max_size=14)


async def write(store: MemoryStore, clock: ManualClock, steps: list[tuple[str, str]]) -> None:
    for number, (key, what) in enumerate(steps):
        clock.advance(1)
        if what == "delete":
            await store.delete(key)
        else:
            body = b"same" if what == "chmod" else bytes([number])
            headers = ObjectHeaders(
                metadata={"mode": str(number)}, storage_class="GLACIER_IR" if number % 2 else None
            )
            await store.put(key, body, headers)


async def present(store: MemoryStore) -> dict[str, tuple[bytes, ObjectHeaders | None]]:
    found = {}
    for key, data in store.contents().items():
        found[key] = (data, (await store.head(key)).headers)
    return found


@settings(deadline=None)
@given(writes, writes, writes)
def test_the_bucket_is_as_it_was_and_nothing_is_lost(
    before: list[tuple[str, str]], after: list[tuple[str, str]], later: list[tuple[str, str]]
) -> None:
    async def main() -> None:
        clock = ManualClock()
        store = MemoryStore("b", versioning="enabled", clock=clock)
        await write(store, clock, before)
        then, at_ns = await present(store), clock.now_ns()
        entries: list[Entry] = []
        await list_entries(store, "b", "", at_ns, entries.extend)
        await write(store, clock, after)
        entries_again: list[Entry] = []
        await list_entries(store, "b", "", at_ns, entries_again.extend)
        assert entries_again == entries
        versions = {(v.key, v.version_id) for v in (await store.list_versions_page("")).versions}
        plan = await plan_restore(store, "b", "", iter(entries))
        progress = Progress()
        failures: list[tuple[Step, str]] = []
        clock.advance(1)
        await carry_out(plan, store, progress, lambda step, why: failures.append((step, why)))
        assert await present(store) == then
        assert failures == []
        assert plan.counts["missing"] == 0
        now = {(v.key, v.version_id) for v in (await store.list_versions_page("")).versions}
        assert versions <= now
        again = await plan_restore(store, "b", "", iter(entries))
        assert again.counts["copy"] == again.counts["delete"] == 0
        progress = Progress()
        await carry_out(again, store, progress, lambda step, why: failures.append((step, why)))
        assert (progress.copied, progress.deleted, failures) == (0, 0, [])

    trio.run(main)


def test_below_a_prefix_the_rest_is_left_alone() -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        put = await store.put("p/a", b"1", ObjectHeaders())
        for key in ("p/a", "p/new", "q"):
            await store.put(key, b"22", ObjectHeaders())
        plan = await plan_restore(store, "b", "p/", iter([Entry("b", "p/a", put.version_id)]))
        assert [(step.do, step.key) for step in plan] == [("copy", "p/a"), ("delete", "p/new")]
        assert plan.shown == list(plan)
        await carry_out(plan, store, Progress(), lambda step, why: None)
        assert store.contents() == {"p/a": b"1", "q": b"22"}

    trio.run(main)


def test_versions_that_are_gone_are_told_and_left_as_they_are() -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        put = await store.put("a", b"1", ObjectHeaders())
        await store.put("a", b"22", ObjectHeaders())
        await store.delete("a", version_id=put.version_id)
        await store.put("c", b"22", ObjectHeaders())
        entries = [
            Entry("b", "a", put.version_id),
            Entry("b", "b", "never"),
            Entry("b", "c", None),
            Entry("b", "d", None),
        ]
        plan = await plan_restore(store, "b", "", iter(entries))
        assert [(step.do, step.key) for step in plan] == [
            ("missing", "a"),
            ("missing", "b"),
            ("missing", "d"),
        ]
        assert plan.counts["right"] == 1
        await carry_out(plan, store, Progress(), lambda step, why: None)
        assert store.contents() == {"a": b"22", "c": b"22"}

    trio.run(main)


@pytest.mark.parametrize("versioning", ["off", "suspended"])
def test_a_bucket_that_keeps_no_versions_is_not_touched(versioning: str) -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning=versioning)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="enable versioning first"):
            await plan_restore(store, "b", "", iter([Entry("b", "a", "null")]))

    trio.run(main)


def test_a_null_version_that_was_written_over_is_gone() -> None:
    async def main() -> None:
        store = MemoryStore("b")
        put = await store.put("a", b"1", ObjectHeaders())
        await store.put("a", b"22", ObjectHeaders())
        store.enable()
        plan = await plan_restore(store, "b", "", iter([Entry("b", "a", "null", 1, put.etag)]))
        assert [step.do for step in plan] == ["missing"]

    trio.run(main)


def failing(error: Exception) -> tuple[Progress, list[str]]:
    """What comes of a restore of two keys while copies fail with ``error``."""
    told: list[str] = []
    progress = Progress()

    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        entries = []
        for key in "ab":
            put = await store.put(key, b"1", ObjectHeaders(metadata={"mode": "1"}))
            entries.append(Entry("b", key, put.version_id))
            await store.put(key, b"22", ObjectHeaders())
        plan = await plan_restore(store, "b", "", iter(entries))
        plain = store.copy

        async def copy(
            source: object, key: str, headers: ObjectHeaders | None, **more: object
        ) -> object:
            if headers is None:
                raise error
            return await plain(source, key, headers, **more)  # type: ignore[arg-type]

        store.copy = copy  # type: ignore[method-assign, assignment]
        await carry_out(plan, store, progress, lambda step, why: told.append(step.key))
        if progress.copied:
            assert (await store.head("a")).headers == ObjectHeaders(metadata={"mode": "1"})

    trio.run(main)
    return progress, told


def test_a_store_that_refuses_copies_onto_themselves_gets_the_headers_spelt_out() -> None:
    progress, told = failing(RejectedError("to itself", status=400, code="InvalidRequest"))
    assert (progress.copied, progress.failed, told) == (2, 0, [])


def test_one_key_that_fails_does_not_end_it_but_a_lost_connection_does() -> None:
    progress, told = failing(RejectedError("locked", status=400, code="ObjectLocked"))
    assert (progress.copied, progress.failed, sorted(told)) == (0, 2, ["a", "b"])
    with pytest.raises(NetworkError):
        failing(NetworkError("gone"))


def test_the_folder_of_all_keys_bounds_what_may_be_deleted() -> None:
    chance = random.Random(3)

    def found(*names: str) -> dict[str, str]:
        shuffled = chance.sample(names, len(names))
        return folders_of(Entry("b", name, "v") for name in shuffled)

    assert found("p/a", "p/b/c", "p/bd") == {"b": "p/"}
    assert found("p/a") == {"b": "p/"}
    assert found("p/a/1", "p/a/2") == {"b": "p/a/"}
    assert found("p/a1/x", "p/a2/x") == {"b": "p/"}
    assert found("pa", "pb") == {"b": ""}
    assert found("a", "b/c") == {"b": ""}
    assert folders_of([]) == {}


def test_a_long_plan_is_kept_on_disk_in_order() -> None:
    plan = Plan("b", "")
    for number in range(2500):
        plan.add(Step("delete", f"{number:05d}"))
    assert [step.key for step in plan] == [f"{number:05d}" for number in range(2500)]
    assert [step.key for step in plan] == [f"{number:05d}" for number in range(2500)]
    assert len(plan.shown) == 20
    plan.close()
