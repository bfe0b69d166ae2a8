"""Executes the plan of a checkout: many files at once, until all are there or it makes no sense to go on."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator

import msgspec
import trio

from s3mount.checkout import comparing
from s3mount.checkout.atomic_write import AtomicWriter, Guard, open_file
from s3mount.checkout.digests import DigestIndex, Row, row_of
from s3mount.checkout.fetching import Fetcher, StoredIn
from s3mount.checkout.folder_state import Notes
from s3mount.checkout.options import Changed
from s3mount.checkout.paths import permissions
from s3mount.checkout.planning import Kind, Step, wants_adjusting
from s3mount.checkout.removing import Remover
from s3mount.checkout.summary import Failures, Progress, Summary
from s3mount.errors import (
    DiskFullError,
    EngineError,
    ExpiredCredentialsError,
    LocalDiskError,
    NoCredentialsError,
    NoSuchBucketError,
    S3MountError,
    StoreError,
    WrongRegionError,
    reason,
)
from s3mount.manifest.buckets import Buckets, open_buckets
from s3mount.manifest.location import OpenStore
from s3mount.manifest.model import Entry
from s3mount.refs import ObjectDigests
from s3mount.s3.store import Store
from s3mount.transfer import proving
from s3mount.transfer.fetching import SMALL_BYTES, digests_of
from s3mount.transfer.patience import Patience

WORKERS_MAX = 128
"""Files under way at once; the store's own window lets fewer requests through where that is better."""
BATCH_STEPS = 1000
FLUSH_EVERY_S = 1.0
SHOW_EVERY_S = 0.2


class Work:
    """Carries out steps: those planned ``ahead``, and unless that ``is_whole`` the rest. ``run`` once."""

    def __init__(
        self,
        *,
        ahead: list[Step],
        is_whole: bool,
        steps: Iterator[Step],
        placer: AtomicWriter,
        index: DigestIndex | None,
        remover: Remover,
        open_store: OpenStore,
        stored_in: StoredIn,
        summary: Summary,
        failures: Failures,
        notes: Notes,
        watch: Callable[[Progress], None],
        accept_unproven: bool,
        changed: Changed,
    ) -> None:
        self._changed = changed
        self._steps = steps
        self._ahead: deque[Step] = deque()
        self._planning = trio.Lock()
        self._progress = Progress()
        self._watch = watch
        self._plan(ahead)
        self._progress.is_planned = is_whole
        self._placer = placer
        self._index = index
        self._remover = remover
        self._open_store = open_store
        self._fetcher = Fetcher(
            placer, stored_in, self._count_bytes, accept_unproven=accept_unproven
        )
        self._hashing = trio.CapacityLimiter(os.cpu_count() or 1)
        self._summary = summary
        self._failures = failures
        self._notes = notes
        self._patience = Patience()
        self._failure: S3MountError | None = None
        self._stores: Buckets[str, Store]

    def _plan(self, batch: list[Step]) -> None:
        """Take more steps in; none means that all are planned."""
        progress = self._progress
        self._ahead.extend(batch)
        progress.files_total += len(batch)
        progress.size_bytes_total += sum(step.entry.size or 0 for step in batch)
        progress.is_planned = not batch

    def _count_bytes(self, n: int) -> None:
        self._summary.downloaded_bytes += n
        self._progress.size_bytes += n

    async def run(self) -> None:
        """All steps. Raises S3MountError when the rest was given up; what was done stays done."""

        async def worker() -> None:
            try:
                while self._failure is None and (step := await self._next()) is not None:
                    await self._do(step)
            except S3MountError as error:
                self._failure = self._failure or error
                if not isinstance(error, DiskFullError):
                    nursery.cancel_scope.cancel()
                # On a full disk there is still room for what is under way.

        async with (
            open_buckets(self._open_store, buckets_max=None) as self._stores,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._flush_now_and_then)
            nursery.start_soon(self._show)
            async with trio.open_nursery() as workers:
                for _ in range(WORKERS_MAX):
                    workers.start_soon(worker)
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _flush_now_and_then(self) -> None:
        while True:
            await trio.sleep(FLUSH_EVERY_S)
            if self._index is not None:
                self._index.flush()

    async def _show(self) -> None:
        while True:
            self._watch(self._progress)
            await trio.sleep(SHOW_EVERY_S)

    async def _next(self) -> Step | None:
        """The next step, planned in a thread as far ahead as is needed."""
        while not self._ahead:
            async with self._planning:
                if self._ahead:
                    break
                if self._progress.is_planned:
                    return None
                self._plan(
                    await trio.to_thread.run_sync(
                        lambda: list(itertools.islice(self._steps, BATCH_STEPS))
                    )
                )
        return self._ahead.popleft()

    async def _do(self, step: Step) -> None:
        try:
            if step.obstacle is not None:
                self._clear(step)
            if step.kind is Kind.FOLDER:
                self._make_folder(step)
            elif step.kind is Kind.UNPROVEN:
                self._note_unproven(step.path)
            elif step.kind is Kind.ADJUST:
                self._adjust(step.path, step.entry, step.row)
            else:
                await self._make_right(step)
        except (DiskFullError, NoCredentialsError, ExpiredCredentialsError, EngineError):
            raise
        except S3MountError as error:
            if isinstance(error, NoSuchBucketError | WrongRegionError):
                self._stores.fail(step.entry.bucket, error)
            await self._fail(step, error)
        finally:
            self._progress.files += 1

    async def _fail(self, step: Step, error: S3MountError) -> None:
        """Note a failure; raises it where the rest would fail like it."""
        if isinstance(error, StoreError) and error.retryable:
            await self._patience.unheard(await self._stores.of(step.entry.bucket), error)
        self._failures.add(step.path, step.entry, reason(error))

    def _clear(self, step: Step) -> None:
        assert step.obstacle is not None
        before = self._remover.removed
        try:
            self._remover.remove(step.obstacle)
        except OSError as error:
            raise LocalDiskError(f"{step.obstacle.path}: {error.strerror}") from error
        finally:
            self._summary.deleted += self._remover.removed - before

    def _make_folder(self, step: Step) -> None:
        try:
            self._placer.folders.find(step.path.rstrip("/"), make=True)
        except OSError as error:
            raise LocalDiskError(str(error.strerror)) from error
        self._notes.folder(step.path.rstrip("/"))

    def _adjust(self, path: str, entry: Entry, row: Row | None) -> None:
        found = self._placer.adjust(path, permissions(entry.mode), entry.mtime_ns)
        self._summary.adjusted += 1
        self._count_right(path, entry, found, row)

    def _count_right(self, path: str, entry: Entry, found: os.stat_result, row: Row | None) -> None:
        """The file is the version, which ``row`` tells of its bytes."""
        if row is None or row.is_proven:
            self._summary.right += 1
            self._summary.right_bytes += found.st_size
        if row is not None:
            self._remember(path, entry, found, row.digest, is_proven=row.is_proven)

    def _note_unproven(self, path: str) -> None:
        self._summary.note_unproven(path)
        self._notes.give_up()

    async def _make_right(self, step: Step) -> None:
        """Fetch the version unless it is there already; what was edited here is spared."""
        is_right, digest = (False, b"") if step.kind is Kind.FETCH else await self._look_at(step)
        if is_right:
            return
        if self._changed is Changed.OVERWRITE:
            await self._fetch(step, None)
            return
        is_edited = await self._is_edited(step, digest)
        if is_edited and self._changed is Changed.KEEP:
            self._summary.note_edited(step.path, None)
            self._notes.give_up()
            return
        await self._fetch(step, Guard(step.seen, is_edited))

    async def _is_edited(self, step: Step, digest: bytes) -> bool:
        """Was the file edited here since it was checked out? ``digest`` is its own where it was read already."""
        if step.is_edited is not None or step.edited is None or step.seen is None:
            return bool(step.is_edited)
        if not digest:
            descriptor = open_file(self._placer.folders, step.path)
            try:
                hashes = await trio.to_thread.run_sync(
                    proving.hash_file, descriptor, step.seen.st_size, "", limiter=self._hashing
                )
            except OSError as error:
                raise LocalDiskError(str(error.strerror)) from error
            finally:
                os.close(descriptor)
            digest = hashes.digest
        return digest != step.edited.digest

    async def _look_at(self, step: Step) -> tuple[bool, bytes]:
        """Read the file that is there; is it right (then it is noted), and what is its digest?"""
        entry = step.entry
        if not entry.etag and not (step.row is not None and step.row.holds(entry)):
            entry = await self._ask(entry)
        verdict = await self._compare(step, entry)
        is_large = verdict.found.st_size > SMALL_BYTES
        if verdict.digest and (
            verdict.is_right is None or (verdict.is_right is False and is_large)
        ):
            # An ETag may be no digest. To ask costs less than the bytes, unless they are few.
            digests = await digests_of(
                await self._stores.of(entry.bucket), entry.key, entry.version_id
            )
            self._patience.heard()
            tells_more = digests is not None and (
                verdict.is_right is None or not digests.etag_is_digest
            )
            if digests is not None and tells_more and digests.etag == entry.etag:
                verdict = await self._compare(step, entry, digests)
        if not verdict.is_right:
            return False, verdict.digest
        is_proven = step.row is None or step.row.is_proven or not step.row.holds(entry)
        row = row_of(step.path, entry, verdict.found, verdict.digest, is_proven=is_proven)
        if wants_adjusting(entry, verdict.found):
            self._adjust(step.path, entry, row)
        else:
            self._count_right(step.path, entry, verdict.found, row)
        return True, verdict.digest

    async def _ask(self, entry: Entry) -> Entry:
        """What S3 says of an entry of which the manifest says little: cheaper than its bytes."""
        info = await (await self._stores.of(entry.bucket)).head(
            entry.key, version_id=entry.version_id
        )
        self._patience.heard()
        return msgspec.structs.replace(
            entry,
            size=info.size if entry.size is None else entry.size,
            etag=info.etag,
            last_modified_ns=entry.last_modified_ns or info.last_modified_ns or None,
        )

    async def _compare(
        self, step: Step, entry: Entry, digests: ObjectDigests | None = None
    ) -> comparing.Verdict:
        descriptor = open_file(self._placer.folders, step.path)
        try:
            if step.row is not None and step.row.holds(entry):
                found = os.fstat(descriptor)
                if step.row.is_of(found):
                    return comparing.Verdict(True, step.row.digest, found)
            verdict = await trio.to_thread.run_sync(
                comparing.compare, descriptor, entry, step.row, digests, limiter=self._hashing
            )
        except OSError as error:
            raise LocalDiskError(str(error.strerror)) from error
        finally:
            os.close(descriptor)
        if verdict.digest:
            self._summary.hashed += 1
            self._summary.hashed_bytes += verdict.found.st_size
        return verdict

    async def _fetch(self, step: Step, guard: Guard | None) -> None:
        store = await self._stores.of(step.entry.bucket)
        fetched = await self._fetcher.fetch(store, step.entry, step.path, guard)
        self._patience.heard()
        self._summary.downloaded += 1
        while self._placer.kept_aside:
            self._summary.note_edited(*self._placer.kept_aside.pop())
        proven = fetched.is_proven
        self._remember(step.path, fetched.entry, fetched.found, fetched.digest, is_proven=proven)

    def _remember(
        self, path: str, entry: Entry, found: os.stat_result, digest: bytes, *, is_proven: bool
    ) -> None:
        """The file at ``path`` is ``entry`` as the store sends it; unless that is proven, it is not right for that."""
        if is_proven:
            self._notes.file(path, found)
        else:
            self._note_unproven(path)
        if self._index is not None:
            self._index.put(row_of(path, entry, found, digest, is_proven=is_proven))
