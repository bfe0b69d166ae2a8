"""A walk through every method of a store, to compare one way to it with another."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from s3mount.errors import NoSuchKeyError
from s3mount.refs import (
    ByteRange,
    Condition,
    ContentRef,
    FileSlice,
    ObjectHeaders,
    ObjectInfo,
    PutResult,
)
from s3mount.s3.store import Store

H = ObjectHeaders(metadata={"mode": "33188", "note": "a b"}, content_type="text/plain")


async def exercise(store: Store, folder: Path) -> list[object]:
    """Use every method; what came back, without what differs from run to run."""
    results: list[object] = []

    def plain(value: object) -> object:
        return msgspec.to_builtins(value)

    def note(value: object) -> None:
        if isinstance(value, ObjectInfo):
            value = msgspec.structs.replace(value, last_modified_ns=0)
        if isinstance(value, PutResult):
            value = msgspec.structs.replace(value, date_ns=0)
        results.append(plain(value))

    source = folder / os.fsdecode(b"caf\xe9")  # not UTF-8
    source.write_bytes(b"0123456789")
    put = await store.put("a/é", b"inline", H, condition=Condition(if_absent=True))
    note(put)
    note(await store.put("a/f", FileSlice(str(source), 2, 5), H))
    note(await store.head("a/é"))
    info, data = await store.get("a/é", byte_range=ByteRange(1, 3), if_match=put.etag)
    note(info)
    note(data)
    sink = folder / "sink"
    sink.write_bytes(bytes(8))
    seen: list[int] = []
    note(
        await store.fetch(
            "a/f", ByteRange(1, 4), FileSlice(str(sink), 2, 4), on_progress=seen.append
        )
    )
    note((seen == sorted(seen), seen[-1], sink.read_bytes()))
    ref = ContentRef("a/é", put.etag, 6)
    note(await store.copy(ref, "b", H))
    note(await store.copy(ref, "c", None))
    note((await store.head("c")).headers)
    await store.put_tags("c", "tag=1")
    await store.renew_credentials()
    await store.set_rates(0, 0)
    described = (await store.describe("c")).headers
    note(None if described is None else described.tags)
    page = await store.list_page("", delimiter="/", max_keys=2)
    note((len(page.objects), page.prefixes, page.next_token is not None))
    versions = await store.list_versions_page("", delimiter="/", key_marker="a/f", max_keys=2)
    note([(v.key, v.version_id, v.is_latest, v.size, v.etag) for v in versions.versions])
    upload = await store.create_multipart("m", H)
    note([u.key for u in await store.list_uploads("")])
    part = await store.upload_part("m", upload, 1, b"p" * 7)
    note(part)
    note(await store.list_parts("m", upload))
    note(await store.complete_multipart("m", upload, [part], condition=Condition(if_absent=True)))
    other = await store.create_multipart("n", H)
    note(await store.upload_part_copy("n", other, 1, ref, ByteRange(0, 6)))
    await store.abort_multipart("n", other)
    await store.delete("b")
    note([o.key for o in (await store.list_page("")).objects])
    note([type(e) for e in await store.delete_many(["c", "m", "never"])] == [type(None)] * 3)
    note((await store.check_bucket()).versioning)
    note(await store.noncurrent_rule("a/"))
    note((await store.probe("probe")).if_match)
    for call in (store.head("gone"), store.get("gone"), store.list_parts("m", upload)):
        with pytest.raises(NoSuchKeyError) as caught:
            await call
        note((str(caught.value), caught.value.key, caught.value.status, caught.value.code))
    return results
