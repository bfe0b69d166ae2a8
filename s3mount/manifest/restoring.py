"""Bringing a live bucket back to a manifest: copies of old versions, and delete markers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import trio

from s3mount.errors import (
    EngineError,
    ExpiredCredentialsError,
    NoCredentialsError,
    NoSuchBucketError,
    RejectedError,
    StoreError,
    UsageError,
)
from s3mount.manifest.model import Entry, is_same_etag
from s3mount.manifest.selecting import Own, Selection
from s3mount.manifest.spill_file import Chunk, Spill
from s3mount.manifest.times import SECOND_NS
from s3mount.manifest.versions.key_pages import VersionPages
from s3mount.manifest.versions.version_scan import Scan
from s3mount.names import is_trial_key
from s3mount.refs import ContentRef, Key, ObjectHeaders, ObjectVersion
from s3mount.s3.headers import is_md5_etag, same_when_stored
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.patience import Patience

COPIES_AT_ONCE = 32
DELETIONS_AT_ONCE = 4
KEYS_PER_DELETION = 1000
"""What one DeleteObjects takes."""
STEPS_PER_CHUNK = 1000
SHOWN_MAX = 20
"""So many steps of a plan are shown."""


class Step(msgspec.Struct, frozen=True):
    """One thing to do. ``look``: equal bytes may be there under another version; S3 knows more of both."""

    do: Literal["copy", "look", "delete", "missing"]
    key: Key
    version_id: str = ""
    size: int = 0
    etag: str = ""
    storage_class: str | None = None


class Plan:
    """What has to be done to one bucket; kept on disk, as it may be long. ``close`` it at the end.

    In ``counts``: ``other`` are keys that the manifest does not name and that stay, ``kept`` those that hold
    the manifest itself (the first of them in ``kept``).
    """

    def __init__(self, selection: Selection) -> None:
        self.bucket = selection.bucket
        self.prefix = selection.prefix
        self.deletes = selection.deletes
        self.counts = {
            "copy": 0,
            "look": 0,
            "delete": 0,
            "missing": 0,
            "right": 0,
            "other": 0,
            "kept": 0,
        }
        self.kept: list[Key] = []
        self.copy_bytes = 0
        self.shown: list[Step] = []
        self._spill: Spill[Step] = Spill(Step)
        self._chunks: list[Chunk] = []
        self._open: list[Step] = []

    @property
    def found(self) -> int:
        """How many keys there are, in the manifest or in the bucket."""
        return sum(self.counts.values())

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


async def plan_restore(
    store: Store,
    selection: Selection,
    entries: Iterator[Entry],
    *,
    own: Own | None = None,
    on_scan: Callable[[Scan[ObjectVersion]], None] | None = None,
) -> Plan:
    """What it takes to bring what is selected back to ``entries``, which are sorted and below its prefix.

    All versions are listed. Raises UsageError unless the bucket keeps versions, as what is replaced
    would be lost otherwise; LocalDiskError, the store's errors, and what reading ``entries`` raises.
    """
    about = await store.check_bucket(selection.prefix)
    if about.versioning != "enabled":
        raise UsageError(
            f"the bucket {selection.bucket} keeps no versions now (versioning: {about.versioning}), so a restore "
            "would destroy what is there: enable versioning first"
        )
    plan = Plan(selection)
    matcher = _Matcher(plan, selection, entries, own or Own())
    scan = Scan(VersionPages(store, selection.prefix))
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

    def __init__(
        self, plan: Plan, selection: Selection, entries: Iterator[Entry], own: Own
    ) -> None:
        self._plan = plan
        self._selection = selection
        self._own = own
        self._entries = entries
        self._entry = next(entries, None)
        self._key: Key | None = None
        self._latest: ObjectVersion | None = None
        self._is_latest_known = False
        self._wanted: ObjectVersion | None = None

    def take(self, versions: list[ObjectVersion]) -> None:
        for version in versions:
            if is_trial_key(version.key):
                continue
            if version.key != self._key:
                self._end_key()
                self._begin_key(version.key)
            if version.is_latest and not self._is_latest_known:
                # LocalStack calls a null version the latest for ever; the newest comes first.
                self._is_latest_known = True
                self._latest = None if version.is_delete_marker else version
            entry = self._entry
            if entry is not None and entry.key == version.key and _is_meant(entry, version):
                self._wanted = _nearer(entry, self._wanted, version)

    def finish(self) -> None:
        """All versions have been taken."""
        self._end_key()
        self._miss_until(None)

    def _begin_key(self, key: Key) -> None:
        self._key, self._latest, self._wanted = key, None, None
        self._is_latest_known = False
        self._miss_until(key)

    def _miss_until(self, key: Key | None) -> None:
        """Of the entries before ``key`` the store has no version at all."""
        while self._entry is not None and (key is None or self._entry.key < key):
            self._miss(self._entry)
            self._entry = next(self._entries, None)

    def _end_key(self) -> None:
        key, latest, entry = self._key, self._latest, self._entry
        if key is None:
            return
        if entry is not None and entry.key == key:
            self._entry = next(self._entries, None)
            self._end_entry(entry, latest)
        elif latest is None:
            return
        elif self._selection.deletes:
            self._change(Step("delete", key), latest)
        elif self._selection.counts_others:
            self._plan.counts["other"] += 1

    def _end_entry(self, entry: Entry, latest: ObjectVersion | None) -> None:
        wanted = self._wanted
        is_exact = entry.version_id is not None and wanted is not None
        if latest is not None and (latest == wanted if is_exact else _is_right(entry, latest)):
            self._plan.counts["right"] += 1
        elif wanted is None:
            self._miss(entry)
        else:
            step = Step(
                "look" if latest is not None and _may_be_equal(latest, wanted) else "copy",
                entry.key,
                wanted.version_id,
                wanted.size,
                wanted.etag,
                wanted.storage_class,
            )
            self._change(step, latest)

    def _change(self, step: Step, latest: ObjectVersion | None) -> None:
        """A key is to be changed, unless it holds the manifest."""
        if latest is not None and self._own.is_held_by(latest):
            self._plan.counts["kept"] += 1
            self._plan.kept = [*self._plan.kept, step.key][:SHOWN_MAX]
        else:
            self._plan.add(step)

    def _miss(self, entry: Entry) -> None:
        self._plan.add(Step("missing", entry.key, entry.version_id or "", etag=entry.etag))


def _is_meant(entry: Entry, version: ObjectVersion) -> bool:
    """Does an entry mean this version of its key: by its id, or without one by its ETag, or size and time?"""
    # A "null" version may have been written over, so the ETag counts there too.
    if version.is_delete_marker or (entry.etag and not is_same_etag(version.etag, entry.etag)):
        return False
    if entry.version_id is not None:
        return version.version_id == entry.version_id
    if entry.size is not None and version.size != entry.size:
        return False
    return bool(entry.etag) or (entry.size is not None and _is_of_its_second(entry, version))


def _is_of_its_second(entry: Entry, version: ObjectVersion) -> bool:
    """Some sources of manifests tell no more than seconds."""
    told_ns = entry.last_modified_ns
    return told_ns is not None and told_ns // SECOND_NS == version.last_modified_ns // SECOND_NS


def _nearer(entry: Entry, newer: ObjectVersion | None, older: ObjectVersion) -> ObjectVersion:
    """Of two that an entry without a version may mean, the newer one, unless the older one is of its time."""
    if newer is None or _is_of_its_second(entry, newer) < _is_of_its_second(entry, older):
        return older
    return newer


def _may_be_equal(latest: ObjectVersion, wanted: ObjectVersion) -> bool:
    """May they have the same bytes? A copy of what was sent in parts has another ETag."""
    if latest.size != wanted.size or not wanted.etag:
        return False
    are_digests = is_md5_etag(latest.etag) and is_md5_etag(wanted.etag)
    return latest.etag == wanted.etag or not are_digests


def _is_right(entry: Entry, latest: ObjectVersion) -> bool:
    """Has the live version what an entry tells that names none, or one that was destroyed, by its ETag?"""
    if entry.version_id is not None and not entry.etag:
        return False
    is_size_right = entry.size is None or entry.size == latest.size
    return is_size_right and (not entry.etag or is_same_etag(entry.etag, latest.etag))


def why_missing(step: Step) -> str:
    """Why a step "missing" cannot be done."""
    if step.version_id:
        return "the version is not there any more"
    if step.etag:
        return f"the manifest names no version, and none is there with the ETag {step.etag}"
    return "the manifest names neither a version nor an ETag, and nothing that fits is there"


class Progress(msgspec.Struct):
    """How far a restore is. ``stopped``: why the rest was given up, where it was."""

    copied: int = 0
    copied_bytes: int = 0
    deleted: int = 0
    right: int = 0
    failed: int = 0
    stopped: str = ""


async def carry_out(
    plan: Plan, store: Store, progress: Progress, report: Callable[[Step, str], None]
) -> None:
    """Do what ``plan`` says. Repeatable: what an interrupted restore did is right in the next plan.

    ``report`` gets the steps that failed, and why; the others go on. Where what fails would fail for all keys,
    for want of credentials or of an answer, ``stopped`` says why in ``progress``.
    """
    patience = Patience()

    copier = _Copier(store)

    async def restore(step: Step) -> None:
        try:
            if step.do == "look" and await _is_equal(store, step):
                progress.right += 1
                return
            await copier.copy(step)
            patience.heard()
            progress.copied += 1
            progress.copied_bytes += step.size
        except StoreError as error:
            await failed(step, error)

    async def delete(keys: Sequence[Key]) -> None:
        outcomes: Sequence[StoreError | None]
        try:
            outcomes = await store.delete_many(keys)
        except StoreError as error:
            outcomes = [error] * len(keys)
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome is None:
                progress.deleted += 1
            else:
                await failed(Step("delete", key), outcome)

    async def failed(step: Step, error: StoreError) -> None:
        if isinstance(error, NoCredentialsError | ExpiredCredentialsError | NoSuchBucketError):
            raise error
        progress.failed += 1
        report(step, str(error))
        if error.retryable:
            await patience.unheard(store, error)

    copies = (step for step in plan if step.do in ("copy", "look"))
    try:
        await in_parallel(trio.CapacityLimiter(COPIES_AT_ONCE), copies, restore)
        await in_parallel(trio.CapacityLimiter(DELETIONS_AT_ONCE), _batches(plan), delete)
    except (EngineError, StoreError) as error:
        progress.stopped = " ".join(str(error).split())


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
                await self._store.copy(source, step.key, None)
                return
            except RejectedError as error:
                # LocalStack 4.8 takes an older version for the object itself, which may not be
                # copied to its own key as it is; it may with its headers spelt out.
                if error.code != "InvalidRequest":
                    raise
        info = await self._store.describe(step.key, version_id=step.version_id)
        await self._store.copy(source, step.key, info.headers or ObjectHeaders())
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
    """Does the present version have the bytes and headers of the wanted one, as far as S3 proves it?"""
    wanted = await store.head(step.key, version_id=step.version_id)
    latest = await store.head(step.key)
    is_same = same_when_stored(latest.headers or ObjectHeaders(), wanted.headers or ObjectHeaders())
    if not is_same or latest.size != wanted.size:
        return False
    if latest.etag == wanted.etag:
        return True
    ours = await store.digests(step.key, version_id=step.version_id)
    theirs = await store.digests(step.key, version_id=latest.version_id)
    if ours.is_composite or theirs.is_composite:
        return False
    both = ours.checksums.keys() & theirs.checksums.keys()
    return bool(both) and all(ours.checksums[name] == theirs.checksums[name] for name in both)
