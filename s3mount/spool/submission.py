"""A whole file becomes a pending change: copied into the spool, read from a stream, or only referred to."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable

import trio

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.errors import DiskFullError, LocalDiskError, SourceError
from s3mount.refs import Attributes, Key
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put, blob_id_of
from s3mount.spool.spool import Spool

CHUNK_BYTES = 64 << 20
"""So much is copied between two looks whether it is still wanted."""
STREAM_BYTES = 1 << 20
ROOM_WAIT_S = 30.0
"""So long a file waits for uploads to make room in the spool."""


class Submissions:
    """Takes files into ``spool``. ``threads`` bounds how many are read at once.

    Each method returns when the change survives kill -9, and with ``is_forced`` a power cut too. What it replaces is
    whatever S3 has under the key then. Cancelled, or with an error, nothing was taken. Raises SourceError for what
    cannot be read, or changes meanwhile, DiskFullError and LocalDiskError.
    """

    def __init__(self, spool: Spool, threads: trio.CapacityLimiter) -> None:
        self._spool = spool
        self._threads = threads

    async def copy(self, key: Key, source: int, *, is_forced: bool) -> Put:
        """Take a copy of an open file; shared with it where the file system can (XFS, btrfs)."""
        about = _stat_regular(source)
        await self._have_room(about.st_size)
        blob = self._new_blob()
        return await self._taken(blob, key, source, about, about.st_size, is_forced=is_forced)

    async def refer(self, key: Key, source: int, path: str) -> Put:
        """Take an open file that stays where it is, at ``path``, unchanged until S3 has it.

        Its checksums are kept: should it be changed all the same, it is not sent.
        """
        about = _stat_regular(source)
        try:
            there = os.stat(path)
            if (there.st_dev, there.st_ino) != (about.st_dev, about.st_ino):
                raise SourceError("it is not at its place any more")
            blob = self._spool.new_reference(path)
        except OSError as error:
            raise SourceError(str(error.strerror)) from error
        return await self._taken(blob, key, source, about, 0, is_forced=False)

    async def stream(
        self,
        key: Key,
        source: int,
        owner: tuple[int, int],
        confirm: Callable[[int], Awaitable[None]],
    ) -> Put:
        """Take what is read from a pipe until it ends, once ``confirm(size)`` has returned.

        An end may be that of a program that was killed: ``confirm`` raises where it was not meant.
        """
        blob = self._new_blob()
        try:
            while data := await self._read(source):
                await self._have_room(len(data))
                before = blob.held_bytes
                try:
                    blob.write(blob.size, data)
                finally:
                    self._spool.grew(blob.held_bytes - before)
            await confirm(blob.size)
            now_ns = time.time_ns()
            attributes = Attributes(stat.S_IFREG | 0o644, *owner, now_ns, now_ns, now_ns)
            return await self._recorded(blob, key, attributes, is_forced=True)
        except OSError as error:
            raise _of_disk(error) from error
        finally:
            self._drop_untaken(blob, key)

    async def _read(self, source: int) -> bytes:
        try:
            # What hangs is left to hang: nobody waits for it any more.
            return await trio.to_thread.run_sync(
                os.read, source, STREAM_BYTES, limiter=self._threads, abandon_on_cancel=True
            )
        except OSError as error:
            raise SourceError(str(error.strerror)) from error

    def _new_blob(self) -> Blob:
        try:
            return self._spool.new_blob()
        except OSError as error:
            raise _of_disk(error) from error

    async def _taken(
        self,
        blob: Blob,
        key: Key,
        source: int,
        about: os.stat_result,
        needed_bytes: int,
        *,
        is_forced: bool,
    ) -> Put:
        # The room is taken before the bytes come: others come meanwhile.
        self._spool.grew(needed_bytes)
        try:
            try:
                while blob.size < about.st_size:
                    stop = min(blob.size + CHUNK_BYTES, about.st_size)
                    await trio.to_thread.run_sync(blob.append, source, stop, limiter=self._threads)
            finally:
                self._spool.grew(blob.held_bytes - needed_bytes)
            _must_be_same(about, os.fstat(source))
            attributes = Attributes(
                about.st_mode,
                about.st_uid,
                about.st_gid,
                about.st_mtime_ns,
                # It tells this sending from every other, also of the same file.
                time.time_ns(),
                about.st_atime_ns,
            )
            return await self._recorded(blob, key, attributes, is_forced=is_forced)
        except OSError as error:
            _must_be_same(about, os.fstat(source))
            raise _of_disk(error) from error
        finally:
            self._drop_untaken(blob, key)

    async def _recorded(
        self, blob: Blob, key: Key, attributes: Attributes, *, is_forced: bool
    ) -> Put:
        if is_forced:
            # Before the row, which is the promise.
            await self._spool.durability.file(blob.fd, blob.path.parent)
            crashpoint("fsync: blob forced")
        change = Put(key=key, blob_id=blob.id, attributes=attributes)
        self._spool.record([change])
        blob.release()
        if is_forced:
            await self._spool.durability.journal()
            crashpoint("fsync: journal forced")
        return change

    def _drop_untaken(self, blob: Blob, key: Key) -> None:
        """Take a blob away that no change needs, or not any more."""
        if blob_id_of(self._spool.changes.get(key)) != blob.id:
            with contained(f"the blob {blob.id} stays until the next start"):
                self._spool.drop_blob(blob)

    async def _have_room(self, size_bytes: int) -> None:
        if size_bytes > self._spool.size_bytes_max:
            raise DiskFullError("it is larger than the whole spool (--spool-size)")
        with trio.move_on_after(ROOM_WAIT_S) as waited:
            while not self._spool.has_room(size_bytes):
                await self._spool.wait_for_room()
        if waited.cancelled_caught:
            raise DiskFullError(f"the spool is full, and nothing left it for {ROOM_WAIT_S:g} s")


def _stat_regular(source: int) -> os.stat_result:
    try:
        about = os.fstat(source)
    except OSError as error:
        raise SourceError(str(error.strerror)) from error
    if not stat.S_ISREG(about.st_mode):
        raise SourceError("it is a folder" if stat.S_ISDIR(about.st_mode) else "it is no file")
    return about


def _must_be_same(before: os.stat_result, now: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise SourceError("it was changed while it was read")


def _of_disk(error: OSError) -> LocalDiskError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("the local disk is full: nothing fits the spool")
    return LocalDiskError(f"the spool cannot be used: {error.strerror}")
