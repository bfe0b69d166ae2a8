"""Deleting many keys by few requests, and nobody else's version.

Where the store refuses to delete another version than was named (If-Match), each key has a DELETE of its own:
nothing is safer. Elsewhere the conditions are of no use to the store: either a deletion destroys
nothing, as the bucket keeps versions, or a look must do. Then up to 1,000 keys go by one DeleteObjects,
and where a look is due, what is there is listed just before: a page of a list tells of as many keys as 1,000
HEADs. Between the look and the deletion somebody may still write, with either; a listing of 1,000 keys takes some
0.1 s longer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os.path import commonprefix

import trio

from s3mount.background import Background
from s3mount.errors import RejectedError, S3MountError
from s3mount.pack.union import is_member_etag
from s3mount.refs import ETag, Key
from s3mount.s3.store import Store
from s3mount.spool.upload.capabilities import KnownCapabilities

log = logging.getLogger(__name__)

KEYS_MAX = 1000
"""S3's limit for one DeleteObjects."""
BATCH_MIN = 4
"""Fewer are deleted one by one: that needs no thread, and each is answered for itself."""
GATHER_S = 0.02
"""Deletions that follow each other closer than this go together."""
BATCHES_AT_ONCE = 2
ALONE_AT_ONCE = 64
PAGE_WORTH = 20
"""A page of a list that tells of fewer keys than this is not worth it: the rest is looked at one by one."""


class Deletion:
    """One key to be deleted, by somebody who waits for it."""

    __slots__ = ("ended", "error", "is_alone", "key", "wanted")

    def __init__(self, key: Key, wanted: ETag | None) -> None:
        self.key = key
        self.wanted = wanted
        self.ended = trio.Event()
        self.is_alone = False
        self.error: S3MountError | None = None


class Deletions:
    """The deletions of one spool. ``run`` is their background.

    While it is not known whether the store refuses to delete another version than was named, nothing is gathered.
    """

    def __init__(self, store: Store, known: KnownCapabilities) -> None:
        self._store = store
        self._known = known
        self._takes_batches = True
        self._waiting: list[Deletion] = []
        self._some_waiting = trio.Event()
        self._alone = trio.CapacityLimiter(ALONE_AT_ONCE)
        self._is_running = False

    @property
    def are_gathered(self) -> bool:
        """Do many deletions go by one request?"""
        is_useful = self._known.keeps_deleted or self._known.seen.delete_condition is False
        return is_useful and self._takes_batches and self._is_running

    async def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Delete ``key``, as ``Store.delete`` does. Raises what that raises."""
        if self.are_gathered:
            deletion = Deletion(key, None if self._known.keeps_deleted else if_match)
            self._waiting.append(deletion)
            self._some_waiting.set()
            try:
                await deletion.ended.wait()
            except trio.Cancelled:
                if deletion in self._waiting:
                    self._waiting.remove(deletion)
                raise
            if deletion.error is not None:
                raise deletion.error
            if not deletion.is_alone:
                return
        if is_member_etag(if_match):
            # Many of those are one request.
            await self._store.delete(key, if_match=if_match)
            return
        async with self._alone:
            await self._store.delete(key, if_match=if_match)

    async def run(self) -> None:
        """Send what is gathered, until cancelled."""
        slots = trio.CapacityLimiter(BATCHES_AT_ONCE)
        self._is_running = True
        try:
            async with trio.open_nursery() as nursery:
                background = Background(nursery)
                while True:
                    await self._some_waiting.wait()
                    self._some_waiting = trio.Event()
                    await self._gather()
                    while self._waiting:
                        worker = object()
                        await slots.acquire_on_behalf_of(worker)
                        batch = self._waiting[:KEYS_MAX]
                        del self._waiting[:KEYS_MAX]
                        background.start(self._send, batch, slots, worker)
        finally:
            self._is_running = False

    async def _gather(self) -> None:
        """Return when no more come, or enough."""
        seen = 0
        while seen < len(self._waiting) < KEYS_MAX:
            seen = len(self._waiting)
            await trio.sleep(GATHER_S)

    async def _send(
        self, batch: list[Deletion], slots: trio.CapacityLimiter, worker: object
    ) -> None:
        try:
            await self._bring_about(batch)
        except S3MountError as error:
            # Each alone is told what is wrong with it; a store that knows no batches is not asked again.
            log.info("%d keys are not deleted together: %s", len(batch), error)
            self._takes_batches &= not isinstance(error, RejectedError)
            for deletion in batch:
                deletion.is_alone = not error.retryable
                deletion.error = error if error.retryable else None
        except Exception:
            log.exception("internal error: %d keys are not deleted together", len(batch))
            self._takes_batches = False
            for deletion in batch:
                deletion.is_alone, deletion.error = True, None
        finally:
            slots.release_on_behalf_of(worker)
            for deletion in batch:
                deletion.ended.set()

    async def _bring_about(self, batch: list[Deletion]) -> None:
        """Delete what may be; leave the others to those who wait. Raises S3MountError."""
        going = batch
        if len(batch) < BATCH_MIN:
            going = []
        elif any(deletion.wanted is not None for deletion in batch):
            there = await self._look([deletion.key for deletion in batch])
            # What is another version, or not listed, is looked at by itself.
            going = [each for each in batch if each.wanted in (None, there.get(each.key))]
        together = set(going)
        for deletion in batch:
            deletion.is_alone = deletion not in together
        if going:
            errors = await self._store.delete_many([deletion.key for deletion in going])
            for deletion, error in zip(going, errors, strict=True):
                deletion.error = error

    async def _look(self, keys: Sequence[Key]) -> dict[Key, ETag]:
        """The ETags that S3 holds under ``keys``, as far as few lists tell. Raises S3MountError."""
        if not self._store.lists_in_order:
            await trio.lowlevel.checkpoint()
            return {}
        missing = set(keys)
        found: dict[Key, ETag] = {}
        prefix = commonprefix(list(keys))  # noqa: RUF071 - keys are no paths
        # Before the first of them in S3's order, and behind what comes before.
        before: str | None = min(keys, key=str.encode)[:-1] or None
        token: str | None = None
        while missing:
            try:
                page = await self._store.list_page(prefix, token=token, start_after=before)
            except S3MountError as error:
                if error.retryable:
                    raise
                log.info("keys below %r are looked at one by one: %s", prefix, error)
                break
            told = {info.key: info.etag for info in page.objects if info.key in missing}
            found |= told
            missing -= told.keys()
            token, before = page.next_token, None
            if token is None or len(told) < PAGE_WORTH:
                break
        return found
