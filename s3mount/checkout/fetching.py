"""One version of one object, brought into the folder: in one request while it is small, else in ranges."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import msgspec

from s3mount.checkout.atomic_write import AtomicWriter, Guard
from s3mount.checkout.paths import permissions
from s3mount.errors import PreconditionFailedError
from s3mount.manifest.model import Entry
from s3mount.refs import ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.transfer.fetching import SMALL_BYTES, Arrived, Fetching, OpenFile, Wanted


class Stored(NamedTuple):
    """What an object's metadata tells of the file it was; ``None`` where nothing."""

    mode: int | None
    mtime_ns: int | None


StoredIn: TypeAlias = Callable[[ObjectHeaders], Stored]


class Fetched(NamedTuple):
    """A file that is in its place. ``entry`` is completed by what the store told; ``is_proven``: by a digest of it."""

    entry: Entry
    found: os.stat_result
    digest: bytes
    is_proven: bool


class Fetcher:
    """Downloads into a target. ``on_bytes(n)`` hears of what arrives; negative where a try was in vain."""

    def __init__(
        self,
        placer: AtomicWriter,
        stored_in: StoredIn,
        on_bytes: Callable[[int], None],
        *,
        accept_unproven: bool,
    ) -> None:
        self._fetching = Fetching(on_bytes, accept_unproven=accept_unproven)
        self._placer = placer
        self._stored_in = stored_in

    async def fetch(self, store: Store, entry: Entry, path: str, guard: Guard | None) -> Fetched:
        """Download ``entry`` to ``path``, checked, in place of what is there, unless ``guard`` spares that.

        What has another digest than the store keeps is fetched once more. After an error, and after cancellation,
        the old file is still there and nothing else. Raises the store's errors: NoSuchKeyError where the
        version is missing, PreconditionFailedError where the store has something else than the manifest says,
        ChecksumError where bytes changed on the way; and LocalDiskError.
        """
        try:
            wanted = Wanted(entry.key, entry.etag, entry.size, entry.version_id)
            if entry.size is None or entry.size <= SMALL_BYTES:
                there = await self._fetching.small(store, wanted)
                if isinstance(there, Arrived):
                    mode, mtime_ns = self._attributes(entry, there.info)
                    found = self._placer.put(path, there.data, mode, mtime_ns, guard)
                    return _fetched(entry, there, found)
                wanted = wanted.completed(there)
            return await self._fetch_large(store, wanted, entry, path, guard)
        except PreconditionFailedError as error:
            if error.status != 412:
                raise
            what = f"the key holds something else now: its ETag is no longer {entry.etag}"
            raise PreconditionFailedError(
                what, key=entry.key, status=412, request_id=error.request_id
            ) from error

    async def _fetch_large(
        self, store: Store, wanted: Wanted, entry: Entry, path: str, guard: Guard | None
    ) -> Fetched:
        landing = self._placer.begin(wanted.size or 0)
        try:
            file = OpenFile(landing.path, landing.descriptor)
            arrived = await self._fetching.large(store, wanted, file)
            mode, mtime_ns = self._attributes(entry, arrived.info)
            found = self._placer.place(landing, path, mode, mtime_ns, guard)
        finally:
            self._placer.give_up(landing)
        return _fetched(entry, arrived, found)

    def _attributes(self, entry: Entry, info: ObjectInfo) -> tuple[int | None, int | None]:
        """Mode and time: the manifest's, else those stored with the object, else its LastModified."""
        mode, mtime_ns = entry.mode, entry.mtime_ns
        if (mode is None or mtime_ns is None) and info.headers and info.headers.metadata:
            stored = self._stored_in(info.headers)
            mode = stored.mode if mode is None else mode
            mtime_ns = stored.mtime_ns if mtime_ns is None else mtime_ns
        if mtime_ns is None:
            mtime_ns = entry.last_modified_ns or info.last_modified_ns or None
        return permissions(mode), mtime_ns


def _fetched(entry: Entry, arrived: Arrived, found: os.stat_result) -> Fetched:
    info = arrived.info
    whole = msgspec.structs.replace(entry, size=info.size, etag=entry.etag or info.etag)
    return Fetched(whole, found, arrived.digest, arrived.is_proven)
