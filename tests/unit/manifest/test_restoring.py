from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.clock import ManualClock
from s3mount.errors import NetworkError, RejectedError, ServerFaultError, UsageError
from s3mount.manifest.model import Entry
from s3mount.manifest.restoring import Plan, Progress, Step, carry_out, plan_restore
from s3mount.manifest.selecting import Own, Selection
from s3mount.manifest.versions.building import list_entries
from s3mount.refs import BucketInfo, ObjectHeaders, VersionPage
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.patience import FRUITLESS_MAX

keys = st.sampled_from(["a", "b/1", "b/2", "c\n", "é", "z/z"])
ALL = Selection("b", "", deletes=True)
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
        plan = await plan_restore(store, ALL, iter(entries))
        progress = Progress()
        failures: list[tuple[Step, str]] = []
        clock.advance(1)
        await carry_out(plan, store, progress, lambda step, why: failures.append((step, why)))
        assert await present(store) == then
        assert failures == []
        assert plan.counts["missing"] == 0
        now = {(v.key, v.version_id) for v in (await store.list_versions_page("")).versions}
        assert versions <= now
        again = await plan_restore(store, ALL, iter(entries))
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
        plan = await plan_restore(
            store, Selection("b", "p/", deletes=True), iter([Entry("b", "p/a", put.version_id)])
        )
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
        plan = await plan_restore(store, ALL, iter(entries))
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
            await plan_restore(store, ALL, iter([Entry("b", "a", "null")]))

    trio.run(main)


def test_a_null_version_that_was_written_over_is_gone() -> None:
    async def main() -> None:
        store = MemoryStore("b")
        put = await store.put("a", b"1", ObjectHeaders())
        await store.put("a", b"22", ObjectHeaders())
        store.enable()
        plan = await plan_restore(store, ALL, iter([Entry("b", "a", "null", 1, put.etag)]))
        assert [step.do for step in plan] == ["missing"]

    trio.run(main)


def failing(error: Exception, keys: int = 2) -> tuple[Progress, list[str]]:
    """What comes of a restore of some keys while copies fail with ``error``, and the bucket with NetworkErrors."""
    told: list[str] = []
    progress = Progress()

    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        entries = []
        for key in map(chr, range(ord("a"), ord("a") + keys)):
            put = await store.put(key, b"1", ObjectHeaders(metadata={"mode": "1"}))
            entries.append(Entry("b", key, put.version_id))
            await store.put(key, b"22", ObjectHeaders())
        plan = await plan_restore(store, ALL, iter(entries))
        plain = store.copy

        async def copy(
            source: object, key: str, headers: ObjectHeaders | None, **more: object
        ) -> object:
            if headers is None:
                raise error
            return await plain(source, key, headers, **more)  # type: ignore[arg-type]

        async def check_bucket(prefix: str = "") -> BucketInfo:
            if isinstance(error, NetworkError):
                raise error
            return await MemoryStore.check_bucket(store, prefix)

        store.copy = copy  # type: ignore[method-assign, assignment]
        store.check_bucket = check_bucket  # type: ignore[method-assign]
        await carry_out(plan, store, progress, lambda step, why: told.append(step.key))
        if progress.copied:
            assert (await store.head("a")).headers == ObjectHeaders(metadata={"mode": "1"})

    trio.run(main)
    return progress, told


def test_a_store_that_refuses_copies_onto_themselves_gets_the_headers_spelt_out() -> None:
    progress, told = failing(RejectedError("to itself", status=400, code="InvalidRequest"))
    assert (progress.copied, progress.failed, told) == (2, 0, [])


def test_keys_that_fail_do_not_end_it_but_a_store_that_does_not_answer_does() -> None:
    for error in (
        RejectedError("locked", status=400, code="ObjectLocked"),
        ServerFaultError("the answer broke off", status=500),
    ):
        progress, told = failing(error)
        assert (progress.copied, progress.failed, sorted(told)) == (0, 2, ["a", "b"])
        assert progress.stopped == ""
    # With more keys it is asked whether it is there at all, and what was done is summed up.
    progress, told = failing(NetworkError("gone"), keys=40)
    assert progress.stopped == "gone"
    assert FRUITLESS_MAX <= progress.failed == len(told) < 40


def test_a_long_plan_is_kept_on_disk_in_order() -> None:
    plan = Plan(ALL)
    for number in range(2500):
        plan.add(Step("delete", f"{number:05d}"))
    assert [step.key for step in plan] == [f"{number:05d}" for number in range(2500)]
    assert [step.key for step in plan] == [f"{number:05d}" for number in range(2500)]
    assert len(plan.shown) == 20
    plan.close()


def planned(
    entries: list[Entry], *histories: tuple[str, list[bytes | None]]
) -> list[tuple[str, str]]:
    """What has to be done to keys with these bodies, one after the other; ``None``: deleted."""
    found: list[tuple[str, str]] = []

    async def main() -> None:
        clock = ManualClock()
        store = MemoryStore("b", versioning="enabled", clock=clock)
        for key, bodies in histories:
            for body in bodies:
                clock.advance(1)
                if body is None:
                    await store.delete(key)
                else:
                    await store.put(key, body, ObjectHeaders())
        plan = await plan_restore(store, Selection("b", ""), iter(entries))
        found.extend((step.do, step.version_id) for step in plan)
        assert plan.counts["right"] == len(entries) - len(found)
        plan.close()

    trio.run(main)
    return found


def md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def test_a_line_without_a_version_means_the_version_with_its_etag() -> None:
    one = Entry("b", "a", None, 1, md5(b"1"))
    assert planned([one], ("a", [b"1"])) == []
    assert planned([one], ("a", [b"22", b"1"])) == []
    assert planned([one], ("a", [b"1", b"22"])) == [("copy", "v00000001")]
    assert planned([one], ("a", [b"1", b"22", b"1", None])) == [("copy", "v00000003")]
    early = msgspec.structs.replace(one, last_modified_ns=ManualClock().now_ns() + 10**9)
    assert planned([early], ("a", [b"1", b"22", b"1", None])) == [("copy", "v00000001")]
    assert planned([one], ("a", [b"22"])) == [("missing", "")]
    assert planned([one], ("b", [b"1"])) == [("missing", "")]
    assert planned([msgspec.structs.replace(one, size=2)], ("a", [b"1"])) == [("missing", "")]


def test_a_line_without_version_and_etag_means_what_has_its_size_and_time() -> None:
    then_ns = ManualClock().now_ns() + 10**9
    assert planned([Entry("b", "a", None)], ("a", [b"22"])) == []
    assert planned([Entry("b", "a", None, 2)], ("a", [b"22"])) == []
    assert planned([Entry("b", "a", None, 1)], ("a", [b"1", b"22"])) == [("missing", "")]
    told = Entry("b", "a", None, 1, "", then_ns)
    assert planned([told], ("a", [b"1", b"22"])) == [("copy", "v00000001")]


def test_what_was_restored_stays_right_when_its_old_version_is_destroyed() -> None:
    assert planned([Entry("b", "a", "gone", 1, md5(b"1"))], ("a", [b"22", b"1"])) == []
    assert planned([Entry("b", "a", "gone", 1, md5(b"1"))], ("a", [b"1", b"22"])) == [
        ("missing", "gone")
    ]


def test_what_holds_the_manifest_is_neither_deleted_nor_replaced() -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        earlier = await store.put("lists/m.csv", b"yesterday's", ObjectHeaders())
        for key in ("lists/m.csv", "copied", "other"):
            await store.put(key, b"today's" if key != "other" else b"other", ObjectHeaders())
        entries = [Entry("b", "lists/m.csv", earlier.version_id)]
        own = Own(frozenset(["lists/m.csv"]), len(b"today's"), md5(b"today's"))
        plan = await plan_restore(store, ALL, iter(entries), own=own)
        assert [(step.do, step.key) for step in plan] == [("delete", "other")]
        assert plan.kept == ["copied", "lists/m.csv"]
        plan.close()

    trio.run(main)


def test_of_two_that_are_called_the_latest_the_newest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning="enabled")
        old = await store.put("a", b"old", ObjectHeaders())
        new = await store.put("a", b"new", ObjectHeaders())
        plain = store.list_versions_page

        async def page(prefix: str, **more: Any) -> VersionPage:
            found = await plain(prefix, **more)
            latest = [msgspec.structs.replace(each, is_latest=True) for each in found.versions]
            return msgspec.structs.replace(found, versions=tuple(latest))

        monkeypatch.setattr(store, "list_versions_page", page)
        plan = await plan_restore(store, ALL, iter([Entry("b", "a", new.version_id)]))
        assert (list(plan), plan.counts["right"]) == ([], 1)
        plan = await plan_restore(store, ALL, iter([Entry("b", "a", old.version_id)]))
        assert [(step.do, step.version_id) for step in plan] == [("copy", old.version_id)]

    trio.run(main)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_copy_of_what_was_sent_in_parts_is_known_by_its_checksum(is_damaged: bool) -> None:
    async def main() -> None:
        store = MemoryStore("b", versioning="enabled", part_bytes_min=1)
        store.tells_checksums = True
        upload = await store.create_multipart("a", ObjectHeaders())
        parts = [await store.upload_part("a", upload, n, b"12") for n in (1, 2)]
        sent = await store.complete_multipart("a", upload, parts)
        await store.put("a", b"1212" if not is_damaged else b"1213", ObjectHeaders())
        entries = [Entry("b", "a", sent.version_id, 4, sent.etag)]
        plan = await plan_restore(store, ALL, iter(entries))
        assert [step.do for step in plan] == ["look"]
        progress = Progress()
        await carry_out(plan, store, progress, lambda step, why: None)
        assert (progress.right, progress.copied) == ((0, 1) if is_damaged else (1, 0))

    trio.run(main)
