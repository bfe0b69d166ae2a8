"""What is on its way to one bucket, without a mount: files are taken into a spool, and sent from there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec
import trio

from s3mount import status
from s3mount.config import MountConfig
from s3mount.errors import MountError, S3MountError
from s3mount.refs import Key, PutResult
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import Put
from s3mount.spool.journal.states import State
from s3mount.spool.submission import Submissions
from s3mount.spool.upload.events import Uploaded, UploadEvent
from s3mount.version import __version__
from s3mount.vfs.filesystem import Filesystem

STATISTICS_TIMEOUT_S = 2.0
LOOK_S = 0.25
"""How often who waits looks whether S3 refuses it: no event tells of that."""
READS_MAX = 8
"""Files that are read at once; more would only wait for the same disk."""
LOST_KINDS = frozenset(("BlobGoneError", "DamagedBlobError"))
"""Of a file that stays where it is: what was handed over is not there any more."""


class NotSentError(S3MountError):
    """S3 did not take a file. ``is_kept``: it stays in the spool and is tried again."""

    def __init__(self, message: str, *, is_kept: bool) -> None:
        super().__init__(message)
        self.is_kept = is_kept


class _Watch:
    """What is heard of one key while somebody waits: each state that S3 has, by its seq."""

    __slots__ = ("heard", "news")

    def __init__(self) -> None:
        self.heard: list[tuple[int, PutResult]] = []
        self.news = trio.Event()


class Outbox:
    """The daemon's part for one bucket, and what the control socket asks (``daemon.server.Mounted``).

    ``filesystem`` is one that nobody mounts; it must run.
    """

    def __init__(
        self, config: MountConfig, filesystem: Filesystem, store: Store, log_path: str
    ) -> None:
        self._config = config
        self._filesystem = filesystem
        self._store = store
        self._log_path = log_path
        self._began_ns = time.time_ns()
        self._watches: dict[Key, list[_Watch]] = {}
        self._spool = filesystem.state.spool
        self._submissions = Submissions(self._spool, trio.CapacityLimiter(READS_MAX))
        self._taking = 0
        self._used_at = trio.current_time()
        self.is_ending = False
        self.ended = trio.Event()
        filesystem.outcomes.listeners.append(self._heard)
        # Somebody always waits: small files are not held back for those that may follow.
        filesystem.uploader.hurry()

    @property
    def name(self) -> str:
        """What commands call it: ``s3://BUCKET``."""
        return self._config.mountpoint

    # ------------------------------------------------------------------- sending

    async def take(self, key: Key, take: Callable[[Submissions], Awaitable[Put]]) -> Put:
        """Take a file. Raises what ``take`` does, and MountError while the daemon ends."""
        if self.is_ending:
            raise MountError("the daemon ends: hand it over again once it runs")
        self._taking += 1
        try:
            return await take(self._submissions)
        finally:
            self._taking -= 1
            self.used()

    def used(self) -> None:
        """Somebody is about to hand a file over, or has done it."""
        self._used_at = trio.current_time()

    def is_idle(self, for_s: float) -> bool:
        """Was nothing to be done for so long?"""
        is_busy = self._taking or self._watches or self._spool.changes
        return not is_busy and trio.current_time() - self._used_at >= for_s

    async def deliver(
        self,
        key: Key,
        take: Callable[[Submissions], Awaitable[Put]],
        *,
        taken: Callable[[Put], Awaitable[None]] | None = None,
        tries_max: int | None = None,
        is_kept: bool = True,
    ) -> PutResult:
        """Take a file, tell ``taken``, and return when S3 has it, or a later state of the key.

        Raises what ``take`` does, and NotSentError when S3 refuses it, or does not take it in ``tries_max`` tries;
        then it stays in the spool where it ``is_kept``. Cancelled, it stays and is sent.
        """
        with self._watching(key) as watch:
            change = await self.take(key, take)
            if taken is not None:
                await taken(change)
            while True:
                watch.news = trio.Event()
                result = next((each for seq, each in watch.heard if seq >= change.seq), None)
                if result is not None:
                    return result
                self._must_not_be_refused(change, tries_max, is_kept=is_kept)
                with trio.move_on_after(LOOK_S):
                    await watch.news.wait()

    def _must_not_be_refused(self, change: Put, tries_max: int | None, *, is_kept: bool) -> None:
        current = self._spool.changes.get(change.key)
        if current is None:
            raise NotSentError("it was given up", is_kept=False)
        is_over = tries_max is not None and current.attempts >= tries_max
        if current.state is not State.PARKED and not is_over:
            return
        why = current.error
        is_lost = current.error_kind in LOST_KINDS
        if current is change and (is_lost or not is_kept):
            self._filesystem.decisions.give_up([change.key])
            is_kept = False
        raise NotSentError(why, is_kept=is_kept)

    @contextlib.contextmanager
    def _watching(self, key: Key) -> Iterator[_Watch]:
        watch = _Watch()
        self._watches.setdefault(key, []).append(watch)
        try:
            yield watch
        finally:
            self._watches[key].remove(watch)
            if not self._watches[key]:
                del self._watches[key]

    def _heard(self, event: UploadEvent) -> None:
        if not isinstance(event, Uploaded) or event.result is None:
            return
        for watch in self._watches.get(event.change.key, ()):
            watch.heard.append((event.change.seq, event.result))
            watch.news.set()

    # ---------------------------------------------- what the control socket asks

    async def snapshot(self) -> dict[str, Any]:
        """Everything that ``s3mount status`` shows of it."""
        found = status.Snapshot(
            mountpoint=self._config.mountpoint,
            source=self._config.store.bucket,
            phase="draining" if self.is_ending else "serving",
            pid=os.getpid(),
            version=__version__,
            mounted_at_ns=self._began_ns,
            state_dir=self._config.state_dir,
            log_path=self._log_path,
            s3=await self._statistics(),
            endpoint_url=self._config.store.endpoint_url,
        )
        plain: dict[str, Any] = msgspec.to_builtins(found)
        return {**plain, **await self._filesystem.status()}

    async def snapshot_of(self, path: str) -> dict[str, Any]:
        """One key. Raises S3MountError."""
        try:
            return await self._filesystem.status_of(path)
        except OSError as error:
            raise MountError(f"{path}: {error.strerror or error}") from None

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        """See ``Filesystem.wait_uploaded``."""
        await self._filesystem.wait_uploaded(paths)

    def pending(self) -> tuple[int, int]:
        """Files and bytes that are not in S3 yet."""
        return self._filesystem.pending()

    async def moved(self) -> float:
        """A number that is higher than ever before whenever something was sent."""
        return (await self._statistics()).get("bytes_written", 0.0)

    async def _statistics(self) -> dict[str, float]:
        with trio.move_on_after(STATISTICS_TIMEOUT_S):
            with contextlib.suppress(S3MountError):
                return dict(sorted((await self._store.statistics()).items()))
        return {}

    async def end_where_taken_away(self) -> None:
        """There is no mount that could be taken away: returns when the daemon ends."""
        await self.ended.wait()

    def stop_draining(self) -> None:
        """Leave the rest for the next start, if all that is left to do is to send it."""
        if self.is_ending:
            self.ended.set()


def path_of_open(fd: int) -> str:
    """Where the daemon finds an open file again by its name; empty where it does not."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        there, about = os.stat(path), os.fstat(fd)
    except OSError:
        return ""
    is_same = (there.st_dev, there.st_ino) == (about.st_dev, about.st_ino)
    return path if is_same and os.access(path, os.R_OK) else ""
