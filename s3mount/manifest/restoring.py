"""Bringing a live bucket back to a manifest: copies of old versions, and delete markers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec
import trio

from s3mount.errors import (
    AccessDeniedError,
    NoSuchKeyError,
    RejectedError,
    S3MountError,
    StoreError,
    UsageError,
)
from s3mount.manifest.model import Entry
from s3mount.manifest.scan import Scan
from s3mount.manifest.spill import Chunk, Spill
from s3mount.refs import ContentRef, Key, ObjectHeaders, ObjectVersion
from s3mount.s3.store import Store
from s3mount.transfer.parallel import in_parallel

COPIES_AT_ONCE = 32
DELETIONS_AT_ONCE = 4
KEYS_PER_DELETION = 1000
"""What one DeleteObjects takes."""
STEPS_PER_CHUNK = 1000
SHOWN_MAX = 20
"""So many steps of a plan are shown."""


class Step(msgspec.Struct, frozen=True):
    """One thing to do. ``look``: equal bytes are there under another version; their headers may differ."""

    do: Literal["copy", "look", "delete", "missing"]
    key: Key
    version_id: str = ""
    size: int = 0
    etag: str = ""
    storage_class: str | None = None


class Plan:
    """What has to be done to one bucket; kept on disk, as it may be long. ``close`` it at the end."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.counts = {"copy": 0, "look": 0, "delete": 0, "missing": 0, "right": 0}
        self.copy_bytes = 0
        self.shown: list[Step] = []
        self._spill: Spill[Step] = Spill(Step)
        self._chunks: list[Chunk] = []
        self._open: list[Step] = []

    @property
    def steps(self) -> int:
        """How many keys need something."""
        return sum(self.counts[kind] for kind in ("copy", "look", "delete"))

    def add(self, step: Step) -> None:
        """Take a step. Raises LocalDiskError."""
        self.counts[step.do] += 1
        if step.do == "copy":
            self.copy_bytes += step.size
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(step)
        self._open.append(step)
        if len(self._open) >= STEPS_PER_CHUNK:
            self._chunks.append(self._spill.put(self._open))
            self._open = []

    def __iter__(self) -> Iterator[Step]:
        for chunk in self._chunks:
            yield from self._spill.get(chunk)
        yield from self._open

    def close(self) -> None:
        """Give it up. Repeatable."""
        self._spill.close()


def folders_of(entries: Iterable[Entry]) -> dict[str, str]:
    """The deepest folder of each bucket that holds all its keys; empty for the whole bucket."""
    ends: dict[str, tuple[Key, Key]] = {}
    for entry in entries:
        first, last = ends.get(entry.bucket, (entry.key, entry.key))
        ends[entry.bucket] = min(first, entry.key), max(last, entry.key)
    found = {}
    for bucket, (first, last) in ends.items():
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        shared = "".join(character for character, _ in same)
        found[bucket] = first[: shared.rfind("/") + 1]
    return found


async def plan_restore(
    store: Store,
    bucket: str,
    prefix: str,
    entries: Iterator[Entry],
    *,
    on_scan: Callable[[Scan], None] | None = None,
) -> Plan:
    """What it takes to bring ``prefix`` of ``bucket`` back to ``entries``, which are sorted and below it.

    All versions are listed. Raises UsageError unless the bucket keeps versions, as what is replaced
    would be lost otherwise; LocalDiskError, the store's errors, and what reading ``entries`` raises.
    """
    about = await store.check_bucket(prefix)
    if about.versioning != "enabled":
        raise UsageError(
            f"the bucket {bucket} keeps no versions now (versioning: {about.versioning}), so a restore would "
            "destroy what is there: enable versioning first"
        )
    plan = Plan(bucket, prefix)
    matcher = _Matcher(plan, entries)
    scan = Scan(store, prefix)
    if on_scan is not None:
        on_scan(scan)
    try:
        await scan.run(matcher.take)
        matcher.finish()
    except BaseException:
        plan.close()
        raise
    return plan


class _Matcher:
    """Holds each key's versions, as they come, against the manifest's next entry."""

    def __init__(self, plan: Plan, entries: Iterator[Entry]) -> None:
        self._plan = plan
        self._entries = entries
        self._entry = next(entries, None)
        self._key: Key | None = None
        self._latest: ObjectVersion | None = None
        self._wanted: ObjectVersion | None = None

    def take(self, versions: list[ObjectVersion]) -> None:
        for version in versions:
            if version.key != self._key:
                self._end_key()
                self._begin_key(version.key)
            if version.is_latest:
                self._latest = version
            entry = self._entry
            is_wanted = (
                entry is not None
                and entry.key == version.key
                and version.version_id == entry.version_id
                and not version.is_delete_marker
            )
            if is_wanted:
                self._wanted = version

    def finish(self) -> None:
        """All versions have been taken."""
        self._end_key()
        while self._entry is not None:
            self._plan.add(Step("missing", self._entry.key, self._entry.version_id or ""))
            self._entry = next(self._entries, None)

    def _begin_key(self, key: Key) -> None:
        self._key, self._latest, self._wanted = key, None, None
        while self._entry is not None and self._entry.key < key:
            self._plan.add(Step("missing", self._entry.key, self._entry.version_id or ""))
            self._entry = next(self._entries, None)

    def _end_key(self) -> None:
        key, latest, entry = self._key, self._latest, self._entry
        if key is None:
            return
        is_there = latest is not None and not latest.is_delete_marker
        if entry is None or entry.key != key:
            if is_there:
                self._plan.add(Step("delete", key))
            return
        self._entry = next(self._entries, None)
        self._end_entry(entry, latest if is_there else None)

    def _end_entry(self, entry: Entry, latest: ObjectVersion | None) -> None:
        plan, wanted = self._plan, self._wanted
        if entry.version_id is None:
            # The manifest names no version: whatever is there is right.
            if latest is None:
                plan.add(Step("missing", entry.key))
            else:
                plan.counts["right"] += 1
        elif wanted is None or (entry.etag and entry.etag != wanted.etag):
            # A "null" version may have been written over.
            plan.add(Step("missing", entry.key, entry.version_id))
        elif latest is not None and latest.version_id == wanted.version_id:
            plan.counts["right"] += 1
        else:
            same = latest is not None and (latest.etag, latest.size) == (wanted.etag, wanted.size)
            plan.add(
                Step(
                    "look" if same and wanted.etag else "copy",
                    entry.key,
                    wanted.version_id,
                    wanted.size,
                    wanted.etag,
                    wanted.storage_class,
                )
            )


class Progress(msgspec.Struct):
    """How far a restore is."""

    copied: int = 0
    copied_bytes: int = 0
    deleted: int = 0
    right: int = 0
    failed: int = 0


async def carry_out(
    plan: Plan, store: Store, progress: Progress, report: Callable[[Step, str], None]
) -> None:
    """Do what ``plan`` says. Repeatable: what an interrupted restore did is right in the next plan.

    ``report`` gets the steps that failed, and why; the others go on. Raises the store's errors that
    concern all keys: no credentials, no connection.
    """

    copier = _Copier(store)

    async def restore(step: Step) -> None:
        try:
            if step.do == "look" and await _is_equal(store, step):
                progress.right += 1
                return
            await copier.copy(step)
            progress.copied += 1
            progress.copied_bytes += step.size
        except StoreError as error:
            _failed(step, error)

    async def delete(keys: Sequence[Key]) -> None:
        for key, error in zip(keys, await store.delete_many(keys), strict=True):
            if error is None:
                progress.deleted += 1
            else:
                _failed(Step("delete", key), error)

    def _failed(step: Step, error: S3MountError) -> None:
        concerns_all = isinstance(error, StoreError) and (error.retryable or error.status == 0)
        if concerns_all and not isinstance(error, AccessDeniedError | NoSuchKeyError):
            raise error
        progress.failed += 1
        report(step, str(error))

    copies = (step for step in plan if step.do in ("copy", "look"))
    await in_parallel(trio.CapacityLimiter(COPIES_AT_ONCE), copies, restore)
    await in_parallel(trio.CapacityLimiter(DELETIONS_AT_ONCE), _batches(plan), delete)


class _Copier:
    """Copies versions over their own keys, with all that is stored with them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_headers = False

    async def copy(self, step: Step) -> None:
        """Make the step's version the latest. Raises the store's errors."""
        source = ContentRef(step.key, step.etag, step.size, step.version_id)
        if not self._by_headers:
            try:
                await self._store.copy(source, step.key, None, storage_class=step.storage_class)
                return
            except RejectedError as error:
                # LocalStack 4.8 takes an older version for the object itself, which may not be
                # copied to its own key as it is; it may with its headers spelt out.
                if error.code != "InvalidRequest":
                    raise
        info = await self._store.head(step.key, version_id=step.version_id)
        headers = msgspec.structs.replace(
            info.headers or ObjectHeaders(), storage_class=step.storage_class
        )
        await self._store.copy(source, step.key, headers)
        self._by_headers = True


def _batches(plan: Plan) -> Iterator[list[Key]]:
    keys: list[Key] = []
    for step in plan:
        if step.do == "delete":
            keys.append(step.key)
        if len(keys) == KEYS_PER_DELETION:
            yield keys
            keys = []
    if keys:
        yield keys


async def _is_equal(store: Store, step: Step) -> bool:
    """Does the present version have the headers of the wanted one as well?"""
    wanted = await store.head(step.key, version_id=step.version_id)
    latest = await store.head(step.key)
    return latest.etag == wanted.etag and _stored(latest.headers) == _stored(wanted.headers)


def _stored(headers: ObjectHeaders | None) -> ObjectHeaders:
    return headers or ObjectHeaders()
