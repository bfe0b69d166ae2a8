"""Dispatch in the engine process: a request becomes a call of a Store, its result a reply."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from s3mount.engine import messages
from s3mount.engine.messages import Reply, Request, Slice, WireBody, record_of
from s3mount.refs import Body, FileSlice
from s3mount.s3.store import Store

Report: TypeAlias = Callable[[int], None]
"""Takes the number of bytes of a fetch that lie in the file."""


def to_wire(body: Body) -> WireBody:
    """A body as it travels."""
    if isinstance(body, FileSlice):
        return slice_to_wire(body)
    return body


def slice_to_wire(place: FileSlice) -> Slice:
    """A place in a local file as it travels."""
    return Slice(
        os.fsencode(place.path),
        place.offset,
        place.length,
        place.expected,
        place.sums_offset,
        place.sums_shift,
    )


def _from_wire(body: WireBody) -> Body:
    if isinstance(body, Slice):
        return _slice_from_wire(body)
    return body


def _slice_from_wire(place: Slice) -> FileSlice:
    return FileSlice(
        os.fsdecode(place.path),
        place.offset,
        place.length,
        place.expected,
        place.sums_offset,
        place.sums_shift,
    )


async def _head(store: Store, r: messages.Head, _: Report) -> Reply:
    return messages.Found(r.id, await store.head(r.key, version_id=r.version_id))


async def _get(store: Store, r: messages.Get, _: Report) -> Reply:
    info, data = await store.get(
        r.key, byte_range=r.byte_range, version_id=r.version_id, if_match=r.if_match
    )
    return messages.Got(r.id, info, data)


async def _fetch(store: Store, r: messages.Fetch, report: Report) -> Reply:
    info = await store.fetch(
        r.key,
        r.byte_range,
        _slice_from_wire(r.sink),
        version_id=r.version_id,
        if_match=r.if_match,
        on_progress=report if r.report else None,
    )
    return messages.Found(r.id, info)


async def _digests(store: Store, r: messages.Digests, _: Report) -> Reply:
    return messages.Kept(r.id, await store.digests(r.key, version_id=r.version_id))


async def _describe(store: Store, r: messages.Describe, _: Report) -> Reply:
    return messages.Found(r.id, await store.describe(r.key, version_id=r.version_id))


async def _put_tags(store: Store, r: messages.PutTags, _: Report) -> Reply:
    await store.put_tags(r.key, r.tags, version_id=r.version_id)
    return messages.Done(r.id)


async def _put(store: Store, r: messages.Put, _: Report) -> Reply:
    result = await store.put(r.key, _from_wire(r.body), r.headers, condition=r.condition)
    return messages.Stored(r.id, result)


async def _copy(store: Store, r: messages.Copy, _: Report) -> Reply:
    result = await store.copy(r.source, r.key, r.headers, condition=r.condition)
    return messages.Stored(r.id, result)


async def _rename(store: Store, r: messages.Rename, _: Report) -> Reply:
    return messages.Stored(r.id, await store.rename(r.source, r.key, condition=r.condition))


async def _append(store: Store, r: messages.Append, _: Report) -> Reply:
    return messages.Stored(r.id, await store.append(r.base, _from_wire(r.body)))


async def _delete(store: Store, r: messages.Delete, _: Report) -> Reply:
    await store.delete(r.key, version_id=r.version_id, if_match=r.if_match)
    return messages.Done(r.id)


async def _delete_many(store: Store, r: messages.DeleteMany, _: Report) -> Reply:
    outcomes = await store.delete_many(r.keys, version_ids=r.version_ids)
    return messages.Deleted(r.id, tuple(None if e is None else record_of(e) for e in outcomes))


async def _list_page(store: Store, r: messages.ListPageOf, _: Report) -> Reply:
    page = await store.list_page(
        r.prefix,
        delimiter=r.delimiter,
        token=r.token,
        start_after=r.start_after,
        max_keys=r.max_keys,
    )
    return messages.Page(r.id, page)


async def _list_versions(store: Store, r: messages.ListVersions, _: Report) -> Reply:
    page = await store.list_versions_page(
        r.prefix,
        delimiter=r.delimiter,
        key_marker=r.key_marker,
        version_marker=r.version_marker,
        max_keys=r.max_keys,
    )
    return messages.Versions(r.id, page)


async def _create_multipart(store: Store, r: messages.CreateMultipart, _: Report) -> Reply:
    return messages.Begun(
        r.id, await store.create_multipart(r.key, r.headers, has_copies=r.has_copies)
    )


async def _upload_part(store: Store, r: messages.UploadPart, _: Report) -> Reply:
    part = await store.upload_part(r.key, r.upload_id, r.number, _from_wire(r.body))
    return messages.Part(r.id, part)


async def _upload_part_copy(store: Store, r: messages.UploadPartCopy, _: Report) -> Reply:
    part = await store.upload_part_copy(r.key, r.upload_id, r.number, r.source, r.byte_range)
    return messages.Part(r.id, part)


async def _complete_multipart(store: Store, r: messages.CompleteMultipart, _: Report) -> Reply:
    result = await store.complete_multipart(r.key, r.upload_id, r.parts, condition=r.condition)
    return messages.Stored(r.id, result)


async def _abort_multipart(store: Store, r: messages.AbortMultipart, _: Report) -> Reply:
    await store.abort_multipart(r.key, r.upload_id)
    return messages.Done(r.id)


async def _list_parts(store: Store, r: messages.ListParts, _: Report) -> Reply:
    return messages.Parts(r.id, await store.list_parts(r.key, r.upload_id))


async def _list_uploads(store: Store, r: messages.ListUploads, _: Report) -> Reply:
    return messages.Uploads(r.id, await store.list_uploads(r.prefix))


async def _check_bucket(store: Store, r: messages.CheckBucket, _: Report) -> Reply:
    return messages.Bucket(r.id, await store.check_bucket(r.prefix))


async def _noncurrent_rule(store: Store, r: messages.NoncurrentRule, _: Report) -> Reply:
    return messages.Told(r.id, await store.noncurrent_rule(r.prefix))


async def _probe(store: Store, r: messages.Probe, _: Report) -> Reply:
    return messages.Able(r.id, await store.probe(r.temporary_key, known=r.known, killed=r.killed))


async def _try_version_dates(store: Store, r: messages.TryVersionDates, _: Report) -> Reply:
    return messages.Answered(r.id, await store.try_version_dates(r.temporary_key))


async def _statistics(store: Store, r: messages.Statistics, _: Report) -> Reply:
    return messages.Counted(r.id, await store.statistics())


async def _may_write(store: Store, r: messages.MayWrite, _: Report) -> Reply:
    return messages.Answered(r.id, await store.may_write(r.temporary_key))


async def _set_rates(store: Store, r: messages.SetRates, _: Report) -> Reply:
    await store.set_rates(r.up_bytes_per_s, r.down_bytes_per_s)
    return messages.Done(r.id)


async def _set_log_level(store: Store, r: messages.SetLogLevel, _: Report) -> Reply:
    await store.set_log_level(r.level)
    return messages.Done(r.id)


async def _renew_credentials(store: Store, r: messages.RenewCredentials, _: Report) -> Reply:
    await store.renew_credentials()
    return messages.Done(r.id)


_CALLS: dict[type[Request], Callable[[Store, Any, Report], Awaitable[Reply]]] = {
    messages.Head: _head,
    messages.Get: _get,
    messages.Fetch: _fetch,
    messages.Digests: _digests,
    messages.Put: _put,
    messages.Copy: _copy,
    messages.Rename: _rename,
    messages.Append: _append,
    messages.Describe: _describe,
    messages.PutTags: _put_tags,
    messages.Delete: _delete,
    messages.DeleteMany: _delete_many,
    messages.ListPageOf: _list_page,
    messages.ListVersions: _list_versions,
    messages.CreateMultipart: _create_multipart,
    messages.UploadPart: _upload_part,
    messages.UploadPartCopy: _upload_part_copy,
    messages.CompleteMultipart: _complete_multipart,
    messages.AbortMultipart: _abort_multipart,
    messages.ListParts: _list_parts,
    messages.ListUploads: _list_uploads,
    messages.CheckBucket: _check_bucket,
    messages.NoncurrentRule: _noncurrent_rule,
    messages.Probe: _probe,
    messages.TryVersionDates: _try_version_dates,
    messages.Statistics: _statistics,
    messages.MayWrite: _may_write,
    messages.RenewCredentials: _renew_credentials,
    messages.SetRates: _set_rates,
    messages.SetLogLevel: _set_log_level,
}


async def dispatch(store: Store, request: Request, report: Report) -> Reply:
    """Do what ``request`` asks. Raises what the store raises."""
    return await _CALLS[type(request)](store, request, report)
