"""The packs that a command names, read: all of a folder's, or a single one."""

from __future__ import annotations

import time

import trio

from s3mount.bulk.location import S3Location
from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.running import FATAL, OneByOne, for_each
from s3mount.errors import (
    NoSuchKeyError,
    ObjectExistsError,
    PackError,
    PreconditionFailedError,
    S3MountError,
    SourceError,
    UsageError,
)
from s3mount.pack.finding import Loaded, Pack, find_packs, load, pack_at, scan
from s3mount.pack.index import INDEX_HEADERS, SUFFIX, encode
from s3mount.refs import Condition, FileSlice
from s3mount.s3.store import Store
from s3mount.transfer.scratch import scratch

INDEXES_AT_ONCE = 16
INDEXING = "pack index"


async def named_packs(store: Store, location: S3Location) -> list[Pack]:
    """The tar files of a folder, or the one that is named. Raises SourceError where there is none, StoreError."""
    if location.is_pattern:
        raise UsageError(f"{location.url}: a folder, or the key of one pack")
    if location.is_folder:
        packs = await find_packs(store, location.key)
        if not packs:
            raise SourceError(f"no pack lies below {location.url}")
        return packs
    try:
        return [await pack_at(store, location.key)]
    except NoSuchKeyError as error:
        raise SourceError(f"{location.url} is not there; a folder ends with a slash") from error


async def loaded_packs(
    store: Store, location: S3Location, report: Report, operation: str
) -> list[Loaded]:
    """What their indexes say. One that cannot be read is told and counted as failed; one that there is not, told.

    Raises what all would meet, and as ``named_packs``.
    """
    found: list[Loaded] = []

    async def one(pack: Pack) -> None:
        url = S3Location(location.bucket, pack.tar.key).url
        try:
            loaded = await _present(store, pack, url)
        except S3MountError as error:
            if isinstance(error, FATAL):
                raise
            report.fail(operation, url, None, error)
            return
        if loaded is not None:
            found.append(loaded)

    async def _present(store: Store, pack: Pack, url: str) -> Loaded | None:
        try:
            loaded = await load(store, pack, url)
        except NoSuchKeyError:
            # Compacted since it was listed: what was alive in it lies in a later pack, which is asked for again.
            return None
        if loaded is None:
            hint = f"{url} has no index: s3mount pack index {url} makes one"
            if not location.is_folder:
                raise PackError(hint)
            report.complain(f"{hint}; it is left out")
        return loaded

    packs = await named_packs(store, location)
    while True:
        await for_each(OneByOne(packs), one, workers=INDEXES_AT_ONCE)
        if not location.is_folder or len(found) == len(packs):
            return found
        known = {pack.tar.key for pack in packs}
        await trio.lowlevel.checkpoint()
        packs = [
            pack for pack in await find_packs(store, location.key) if pack.tar.key not in known
        ]
        if not packs:
            return found


async def make_index(store: Store, location: S3Location, report: Report, *, replaces: bool) -> None:
    """Put the index of a tar file, whoever wrote it, beside it. Members that get no entry are told, with the reason.

    Raises SourceError where there is none, PackError for what is no tar file, ObjectExistsError where there is an
    index that is not to be replaced, and StoreError.
    """
    began_s = time.monotonic()
    if location.is_folder:
        raise UsageError(f"{location.url} is a folder: name the tar files")
    (pack,) = await named_packs(store, location)
    if pack.beside is not None and not replaces:
        raise ObjectExistsError(f"{location.url}{SUFFIX} is there: --force makes it anew")

    def refuse(name: str, why: str) -> None:
        report.complain(f"{location.url}: {name!r} is left out: {why}")

    head, entries = await scan(store, pack.tar, refuse)
    data = encode(head, entries)
    condition = Condition(if_absent=True)
    if pack.beside is not None:
        condition = Condition(if_match=pack.beside.etag)
    key = f"{pack.tar.key}{SUFFIX}"
    try:
        with scratch() as (file, path):
            file.write(data)
            file.flush()
            body = FileSlice(path, 0, len(data))
            result = await store.put(key, body, INDEX_HEADERS, condition=condition)
    except PreconditionFailedError as error:
        raise ObjectExistsError(f"{location.url}{SUFFIX} was written by somebody else") from error
    report.moved(len(data))
    outcome = Outcome(
        operation=INDEXING,
        success=True,
        source=location.url,
        destination=f"{location.url}{SUFFIX}",
        bytes=len(data),
        seconds=round(time.monotonic() - began_s, 6),
        version_id=result.version_id,
    )
    report.take(outcome)
