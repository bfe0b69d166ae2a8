from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from s3mount.clock import ManualClock
from s3mount.errors import NetworkError, NoSuchKeyError, PreconditionFailedError
from s3mount.refs import Condition, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore

PLAIN = ObjectHeaders()
names = st.text(st.sampled_from("ab/é\uffff😀"), min_size=1, max_size=6)


@given(
    keys=st.sets(names, max_size=12),
    prefix=st.text(st.sampled_from("ab/é"), max_size=3),
    delimiter=st.sampled_from([None, "/", "a", "b/"]),
    max_keys=st.integers(1, 5),
    start_after=st.none() | names,
)
def test_listing_agrees_with_a_naive_one(
    keys: set[str], prefix: str, delimiter: str | None, max_keys: int, start_after: str | None
) -> None:
    expected: list[str] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix) or (start_after and key.encode() <= start_after.encode()):
            continue
        rest = key[len(prefix) :]
        entry = key
        if delimiter and delimiter in rest:
            entry = prefix + rest.partition(delimiter)[0] + delimiter
        if entry not in expected:
            expected.append(entry)

    async def main() -> None:
        store = MemoryStore()
        for key in keys:
            await store.put(key, b"", PLAIN)
        found: list[str] = []
        token = None
        first = True
        while first or token is not None:
            page = await store.list_page(
                prefix,
                delimiter=delimiter,
                token=token,
                start_after=start_after if first else None,
                max_keys=max_keys,
            )
            entries = [entry.key for entry in page.objects] + list(page.prefixes)
            assert 0 < len(entries) <= max_keys or not expected
            found.extend(sorted(entries, key=str.encode))
            token, first = page.next_token, False
        assert found == expected

    trio.run(main)


class Losing:
    """Loses the answer of every n-th write, or refuses it, after a delay."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, object]]] = []
        self.fail_before = False
        self.fail_after = False

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        self.calls.append((operation, arguments))
        await trio.sleep(3600)
        if self.fail_before:
            raise NetworkError("refused")

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        if self.fail_after:
            raise NetworkError("lost")


def test_faults_come_before_or_after_the_effect() -> None:
    async def main() -> None:
        faults = Losing()
        store = MemoryStore(faults=faults, clock=ManualClock())
        faults.fail_before = True
        with pytest.raises(NetworkError):
            await store.put("key", b"x", PLAIN)
        assert store.contents() == {}
        faults.fail_before, faults.fail_after = False, True
        with pytest.raises(NetworkError):
            await store.put("key", b"x", PLAIN)
        assert store.contents() == {"key": b"x"}
        assert faults.calls[-1][0] == "put"
        assert faults.calls[-1][1]["body"] == b"x"
        assert trio.current_time() >= 7200
        assert store.requests == {"put": 2}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_observers_see_the_same_bucket_without_faults() -> None:
    async def main() -> None:
        faults = Losing()
        faults.fail_before = True
        store = MemoryStore(faults=faults, versioning="enabled")
        other = store.observer()
        made = await other.put("key", b"theirs", PLAIN)
        assert store.contents() == {"key": b"theirs"}
        assert made.version_id
        store.faults = other.faults
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"ours", PLAIN, condition=Condition(if_absent=True))

    trio.run(main)


def test_suspended_versioning_keeps_one_null_version() -> None:
    async def main() -> None:
        store = MemoryStore(versioning="enabled")
        first = await store.put("key", b"1", PLAIN)
        store.set_versioning("suspended")
        await store.put("key", b"2", PLAIN)
        result = await store.put("key", b"3", PLAIN)
        assert result.version_id == "null"
        assert (await store.get("key"))[1] == b"3"
        assert (await store.get("key", version_id=first.version_id))[1] == b"1"
        await store.delete("key")
        with pytest.raises(NoSuchKeyError):
            await store.get("key")
        with pytest.raises(NoSuchKeyError):
            await store.get("key", version_id="null")
        assert (await store.get("key", version_id=first.version_id))[1] == b"1"

    trio.run(main)
