"""Objects under temporary keys, by which a store's habits are tried, and their removal.

Every run has a key of its own below ``.s3mount/probe-`` and removes what it wrote, with all versions.
A run that was killed cannot: what is left is removed by a later run.
"""

from __future__ import annotations

import logging
import time

import trio

from s3mount.errors import AccessDeniedError, NoSuchKeyError, RejectedError, StoreError
from s3mount.names import TRIAL_PREFIX, is_trial_key
from s3mount.refs import Key, VersionId, VersionPage
from s3mount.s3.calls.multipart import Multipart
from s3mount.s3.calls.reading import Reader
from s3mount.s3.calls.versions import VersionLister
from s3mount.s3.calls.writing import Writer
from s3mount.s3.traits import Traits

_log = logging.getLogger(__name__)

LEFT_AFTER_NS = 3600 * 1_000_000_000
"""A run takes seconds: what is older was left by one that was killed."""
CLEAN_UP_S = 10.0
REMOVED_AT_ONCE_MAX = 16
LISTED_MAX = 1000


class Trials:
    """The temporary objects of one run below ``key``."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        multipart: Multipart,
        versions: VersionLister,
        traits: Traits,
        key: Key,
    ) -> None:
        self.key = key
        self._reader = reader
        self._writer = writer
        self._multipart = multipart
        self._versions = versions
        self._traits = traits
        self._written: list[tuple[Key, VersionId | None]] = []

    @property
    def count(self) -> int:
        """How many writes were noted."""
        return len(self._written)

    async def list_versions(self, prefix: str) -> VersionPage:
        """One page of the versions below ``prefix``. Raises StoreError."""
        return await self._versions.page(prefix, None, None, None, LISTED_MAX)

    def wrote(self, key: Key, version_id: VersionId | None) -> None:
        """This was written, or may have been, and is to be removed at the end."""
        self._traits.versioned |= version_id is not None
        self._written.append((key, version_id))

    async def remove_all(self) -> None:
        """Remove what was written, also when cancelled; what cannot be removed is logged."""
        with trio.move_on_after(CLEAN_UP_S, shield=True):
            async with trio.open_nursery() as nursery:
                for key in dict.fromkeys(key for key, _ in self._written):
                    nursery.start_soon(self._remove_key, key)
            if self._traits.versioned and self._written:
                # Swift makes a version of what it refuses.
                try:
                    await self.remove_left(self.key, is_all=False)
                except StoreError as error:
                    _log.debug("what is left of the probe is unknown: %s", error.describe())

    async def _remove_key(self, key: Key) -> None:
        """Remove every version that was written, also those whose ids the store did not tell."""
        ids = [version_id for written, version_id in self._written if written == key]
        try:
            if not self._traits.versioned:
                await self._writer.delete(key, None)
                return
            for version_id in ids:
                if version_id is not None:
                    await self._writer.delete(key, version_id)
            for version_id in ids:
                if version_id is None:
                    left = await self._reader.head(key)
                    await self._writer.delete(key, left.version_id)
        except NoSuchKeyError:
            return
        except StoreError as error:
            _log.warning("the probe's object stays behind: %s", error.describe())

    async def remove_left(self, killed: Key, *, is_all: bool = True) -> Key | None:
        """Remove what earlier runs left: below ``killed``, unless that is empty, and with ``is_all`` what is old.

        A key that may not be removed is given back: there is no leave to delete, or the bucket retains
        everything. Raises StoreError when it cannot be listed.
        """
        folder = self.key.rpartition(TRIAL_PREFIX)[0] + TRIAL_PREFIX
        before_ns = time.time_ns() - LEFT_AFTER_NS
        kept: list[Key] = []
        slots = trio.CapacityLimiter(REMOVED_AT_ONCE_MAX)

        async def remove(key: Key, version_id: VersionId | None, is_current: bool) -> None:
            async with slots:
                try:
                    await self._writer.delete(key, version_id)
                except (AccessDeniedError, RejectedError):
                    if is_current:
                        kept.append(key)
                except StoreError as error:
                    _log.info("an earlier probe's object stays behind: %s", error.describe())

        def is_left(key: Key, date_ns: int) -> bool:
            if killed and key.startswith(killed):
                return True
            return is_all and is_trial_key(key) and date_ns < before_ns

        async with trio.open_nursery() as nursery:
            for key, version_id, is_current, date_ns in await self._list(
                folder if is_all else killed
            ):
                if is_left(key, date_ns):
                    nursery.start_soon(remove, key, version_id, is_current)
        for upload in await self._multipart.list_uploads(folder if is_all else killed):
            if is_left(upload.key, upload.initiated_ns):
                await self._multipart.abort(upload.key, upload.upload_id)
        return kept[0] if kept else None

    async def _list(self, prefix: str) -> list[tuple[Key, VersionId | None, bool, int]]:
        """What one page tells: key, version, whether that is the present one, and its date."""
        if self._traits.versioned:
            page = await self.list_versions(prefix)
            return [
                (v.key, v.version_id, v.is_latest and not v.is_delete_marker, v.last_modified_ns)
                for v in page.versions
            ]
        listed = await self._reader.list_page(prefix, None, None, None, LISTED_MAX)
        return [(info.key, None, True, info.last_modified_ns) for info in listed.objects]
