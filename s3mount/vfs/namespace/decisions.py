"""What a person decides about pending files: try again, overwrite, or give up."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from s3mount.crashpoints import crashpoint
from s3mount.errors import S3MountError
from s3mount.refs import Key
from s3mount.slices import sliced
from s3mount.spool.journal.changes import Change, parent_of
from s3mount.spool.journal.path_filter import given_up_with, select
from s3mount.spool.journal.states import State
from s3mount.spool.upload.uploader import Uploader
from s3mount.vfs.namespace.directory_times import DirectoryTimes
from s3mount.vfs.state import MountState

log = logging.getLogger(__name__)

DISCARDED_AT_ONCE = 32
"""So many changes, and what is given up with them, are one transaction of the journal: about 5 ms."""


class Decisions:
    """Carries them out. Paths are relative to the mount; without any, all pending changes are meant."""

    def __init__(self, state: MountState, times: DirectoryTimes, uploader: Uploader) -> None:
        self._state = state
        self._times = times
        self._uploader = uploader

    async def _select(self, paths: Sequence[str]) -> list[Change]:
        found: list[Change] = []
        async for part in sliced(list(self._state.spool.changes.values())):
            found += select(part, self._state.config.prefix, paths)
        return found

    async def retry(self, paths: Sequence[str] = (), *, overwrite: bool = False) -> list[Key]:
        """Try those that S3 refused or could not take again, now; their keys.

        A conflict that was held keeps both versions, or with ``overwrite`` ours replaces theirs. Raises
        S3MountError when nothing at or below ``paths`` waits for it.
        """
        changes = self._state.spool.changes
        found = [change for change in await self._select(paths) if _waits(change)]
        if paths and not found:
            raise S3MountError(f"nothing at {', '.join(paths)} waits for another try")
        keys: list[Key] = []
        async for part in sliced(found, 16):
            for change in part:
                if changes.get(change.key) is change and _waits(change):
                    log.info("asked for: another try of %r", change.key)
                    self._uploader.retry(change, overwrite=overwrite)
                    keys.append(change.key)
        return keys

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool = False) -> list[Key]:
        """Give up what is pending at or below ``paths``: S3's state shows again. The keys.

        A moved file's old name comes back with it, in the same step; of many files not all go at once, and what
        a kill leaves goes on. What is on its way just now may still arrive. ``is_rehearsal``: only tell. Raises
        S3MountError when there is nothing, LocalDiskError.
        """
        changes = self._state.spool.changes
        found = await self._select(paths)
        if not found:
            raise S3MountError(f"nothing is pending at {', '.join(paths)}")
        given_up: dict[Key, None] = {}
        async for part in sliced(found, DISCARDED_AT_ONCE):
            there = (change.key for change in part if changes.get(change.key) is change)
            keys = given_up_with(changes, [key for key in there if key not in given_up])
            if not is_rehearsal:
                self.give_up(keys)
            given_up |= dict.fromkeys(keys)
        return list(given_up)

    def give_up(self, keys: Sequence[Key]) -> None:
        """Forget these pending changes. Raises LocalDiskError."""
        spool = self._state.spool
        for key in keys:
            log.warning("given up as asked for: %s of %r", spool.changes[key].op, key)
            blob = spool.blob_of(spool.changes[key])
            if blob is not None and blob.upload is not None:
                self._uploader.multipart.abandon(blob.upload)
                blob.upload = None
        spool.record([], keys)
        crashpoint("discard: recorded")
        for key in keys:
            self._show_anew(key)

    def _show_anew(self, key: Key) -> None:
        """Let the tree forget what it shows under ``key``: the next look asks S3."""
        node = self._state.find(key)
        if node is not None and not node.is_directory:
            self._state.nodes.unlink(node)
        elif node is not None and node.directory is not None:
            self._times.forget(node)
            node.attributes_known = False
            node.headers = None
            node.directory.marker_etag = ""
            node.directory.stores_attributes = None
            node.directory.listed_at = float("-inf")
        above = self._state.find(parent_of(key)) if parent_of(key) else self._state.nodes.root
        if above is not None and above.directory is not None:
            above.directory.listed_at = float("-inf")


def _waits(change: Change) -> bool:
    return change.state is State.PARKED or (change.state is State.QUEUED and bool(change.error))
