"""A conditional write that took effect before the child died is told from somebody else's write."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import trio

from s3mount.engine.client import EngineClient
from s3mount.errors import NoSuchKeyError, PreconditionFailedError, ThrottledError
from s3mount.refs import Condition, FileSlice, ObjectHeaders, ObjectInfo, PartInfo
from s3mount.s3.calls.ambiguous_writes import settle_put
from s3mount.testing.memory_store import MemoryStore
from tests.unit.engine.parents import CONFIG, LocalChild, holding

H = ObjectHeaders(metadata={"mtime": "1.5", "s3mount-id": "x_1"})
ABSENT = Condition(if_absent=True)


class Deadly:
    """The child dies right after (or right before) the first ``operation`` took effect."""

    def __init__(self, operation: str, *, before: bool = False) -> None:
        self._operation = operation
        self._before = before
        self.children: list[LocalChild] = []
        self.foreign: Callable[[], Awaitable[object]] | None = None

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self._before:
            await self._die(operation)

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if not self._before:
            await self._die(operation)

    async def _die(self, operation: str) -> None:
        if operation == self._operation and len(self.children) == 1:
            if self.foreign is not None:
                await self.foreign()
            self.children[0].kill()
            await trio.sleep_forever()


def run(faults: Deadly, main: Callable[[EngineClient, MemoryStore], Awaitable[None]]) -> None:
    store = MemoryStore(faults=faults, part_bytes_min=1)

    async def run() -> None:
        async with trio.open_nursery() as nursery:

            def spawn() -> LocalChild:
                faults.children.append(LocalChild(nursery, holding(store)))
                return faults.children[-1]

            async with EngineClient(CONFIG, spawn=spawn) as client:
                await main(client, store)
                assert client.restarts == 1

    trio.run(run)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_our_own_put_is_reported_as_the_success_that_it_was(
    tmp_path: Path, from_file: bool, before: bool
) -> None:
    (tmp_path / "f").write_bytes(b"..body..")
    body = FileSlice(str(tmp_path / "f"), 2, 4) if from_file else b"body"

    async def main(client: EngineClient, store: MemoryStore) -> None:
        result = await client.put("k", body, H, condition=ABSENT)
        assert result.etag == hashlib.md5(b"body").hexdigest()
        assert store.contents() == {"k": b"body"}
        assert store.requests["put"] == 2

    run(Deadly("put", before=before), main)


@pytest.mark.parametrize(
    ("body", "headers"), [(b"theirs", H), (b"body", ObjectHeaders(metadata={"mtime": "2"}))]
)
def test_somebody_elses_put_is_a_failed_precondition(body: bytes, headers: ObjectHeaders) -> None:
    """Different bytes, or the same bytes with other attributes: ours would be lost silently."""
    faults = Deadly("put", before=True)

    async def main(client: EngineClient, store: MemoryStore) -> None:
        async def foreign() -> None:
            await store.observer().put("k", body, headers)

        faults.foreign = foreign
        with pytest.raises(PreconditionFailedError):
            await client.put("k", b"body", H, condition=ABSENT)
        assert store.contents() == {"k": body}

    run(faults, main)


def test_a_file_that_is_gone_by_then_shows_nothing(tmp_path: Path) -> None:
    """Without the bytes nobody can say whose the object is, so the refusal stands."""
    path = tmp_path / "f"
    path.write_bytes(b"body")

    async def head(key: str) -> ObjectInfo:
        path.unlink()
        return ObjectInfo(key, 4, hashlib.md5(b"body").hexdigest(), 0, headers=H)

    async def main() -> None:
        refusal = PreconditionFailedError("412")
        with pytest.raises(PreconditionFailedError) as caught:
            await settle_put(head, "k", FileSlice(str(path), 0, 4), H, refusal)
        assert caught.value is refusal

    trio.run(main)


def test_a_look_that_fails_shows_nothing() -> None:
    async def head(key: str) -> ObjectInfo:
        raise ThrottledError("slow down")

    async def main() -> None:
        refusal = PreconditionFailedError("412")
        with pytest.raises(PreconditionFailedError) as caught:
            await settle_put(head, "k", b"body", H, refusal)
        assert caught.value is refusal

    trio.run(main)


def test_our_own_overwrite_is_recognised_by_what_it_left() -> None:
    faults = Deadly("put")
    etag = hashlib.md5(b"old").hexdigest()

    async def main(client: EngineClient, store: MemoryStore) -> None:
        assert (await store.observer().put("k", b"old", H)).etag == etag
        result = await client.put("k", b"new", H, condition=Condition(if_match=etag))
        assert result.etag == hashlib.md5(b"new").hexdigest()

    run(faults, main)


@pytest.mark.parametrize("headers", [H, None])
def test_our_own_copy_is_reported_as_the_success_that_it_was(headers: ObjectHeaders | None) -> None:
    async def main(client: EngineClient, store: MemoryStore) -> None:
        await store.observer().put("a", b"body", ObjectHeaders())
        source = (await store.observer().head("a")).ref
        result = await client.copy(source, "b", headers, condition=ABSENT)
        assert result.etag == source.etag
        assert store.requests["copy"] == 2

    run(Deadly("copy"), main)


def test_somebody_elses_copy_is_a_failed_precondition() -> None:
    faults = Deadly("copy", before=True)

    async def main(client: EngineClient, store: MemoryStore) -> None:
        await store.observer().put("a", b"body", ObjectHeaders())
        source = (await store.observer().head("a")).ref

        async def foreign() -> None:
            await store.observer().put("b", b"theirs", H)

        faults.foreign = foreign
        with pytest.raises(PreconditionFailedError):
            await client.copy(source, "b", H, condition=ABSENT)

    run(faults, main)


@pytest.mark.parametrize("condition", [ABSENT, Condition()])
def test_our_own_completion_is_reported_as_the_success_that_it_was(condition: Condition) -> None:
    """The repetition finds the upload gone."""

    async def main(client: EngineClient, store: MemoryStore) -> None:
        upload = await client.create_multipart("k", H)
        parts = [await client.upload_part("k", upload, n, b"%d" % n * 9) for n in (1, 2)]
        result = await client.complete_multipart("k", upload, parts, condition=condition)
        md5s = b"".join(hashlib.md5(b"%d" % n * 9).digest() for n in (1, 2))
        assert result.etag == f"{hashlib.md5(md5s).hexdigest()}-2"
        assert store.requests["complete_multipart"] == 2

    run(Deadly("complete_multipart"), main)


def test_somebody_elses_object_under_a_gone_upload_is_no_success() -> None:
    faults = Deadly("complete_multipart", before=True)

    async def main(client: EngineClient, store: MemoryStore) -> None:
        upload = await client.create_multipart("k", H)
        parts: list[PartInfo] = [await client.upload_part("k", upload, 1, b"ours")]

        async def foreign() -> None:
            await store.observer().abort_multipart("k", upload)
            await store.observer().put("k", b"theirs", H)

        faults.foreign = foreign
        with pytest.raises(NoSuchKeyError):
            await client.complete_multipart("k", upload, parts)
        assert store.contents() == {"k": b"theirs"}

    run(faults, main)


def test_a_first_try_that_is_refused_is_believed_at_once() -> None:
    """Nobody died, so it cannot have been us, even if the bytes are the same."""
    faults = Deadly("delete")

    async def main(client: EngineClient, store: MemoryStore) -> None:
        await store.observer().put("k", b"body", H)
        with pytest.raises(PreconditionFailedError):
            await client.put("k", b"body", H, condition=ABSENT)
        assert "head" not in store.requests
        await client.delete("k")

    run(faults, main)
