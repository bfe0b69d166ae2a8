"""Open files: reading, writing, truncating and closing, over the spool and the cache.

A file that is written has a blob in the spool; every other file is read through the cache, pinned to
the version that was opened. A node keeps its number while its own uploads change its version.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import trio

from s3mount.background import contained
from s3mount.cache.reader import CacheReader, ReadHandle
from s3mount.errors import ArchivedError, NoSuchKeyError, PreconditionFailedError, S3MountError
from s3mount.refs import ContentRef
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put, PutOrCopy, blob_id_of
from s3mount.spool.journal.states import State
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.node import Node
from s3mount.vfs.barrier import UploadBarrier
from s3mount.vfs.file_readahead import FileReadahead
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.missing_versions import MissingVersions, why
from s3mount.vfs.open_files import Handle, OpenFile, is_for_writing, must_be_in_place
from s3mount.vfs.state import MountState, changed
from s3mount.vfs.uploads.dedupe import Deduplicator
from s3mount.vfs.uploads.filling import (
    VERSION_RETRIES,
    VERSION_RETRY_S,
    Aside,
    BlobFiller,
    OnGone,
    read_with,
)
from s3mount.vfs.writing import Writing

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 5 << 40
"""S3's greatest object."""


class Contents:
    """The bytes of files."""

    def __init__(
        self,
        state: MountState,
        directories: Directories,
        readahead: FileReadahead,
        filler: BlobFiller,
        uploader: Uploader,
        barrier: UploadBarrier,
        store: Store,
        reader: CacheReader,
        known: Deduplicator,
    ) -> None:
        self._state = state
        self._store = store
        self._reader = reader
        self._known = known
        self._directories = directories
        self._filler = filler
        self._uploader = uploader
        self._barrier = barrier
        self._files = state.files
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self.readahead = readahead
        self.writing = Writing(state, directories)
        self.archived = MissingVersions()

    # ------------------------------------------------------------------ handles

    def handle(self, number: int) -> Handle:
        """The open handle with this number. Raises OSError (EBADF)."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such handle") from None

    def open(self, node: Node, flags: int, pid: int = 0, *, is_read_by_program: bool = True) -> int:
        """A new handle for ``node``; its number. Raises OSError (ESTALE) for writing what was replaced."""
        if is_for_writing(flags):
            must_be_in_place(node)
        file = self._hold(node)
        handle = Handle(file, flags, pid)
        file.handles += 1
        file.writers += handle.writes
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        if is_read_by_program and not handle.writes:
            with contained("reading ahead"):
                self.readahead.opened(node, pid)
        return number

    async def open_to_read(self, node: Node, flags: int, pid: int = 0) -> int:
        """``open`` for reading, with the bytes of a small file, of which the first read wants all anyway.

        What somebody else replaced since its name was looked up is so met before a handle exists. Raises OSError
        (ESTALE), upon which Linux looks the name up anew, as it does not for a read(); and StoreError.
        """
        await self._directories.must_be_current(node)
        number = self.open(node, flags, pid)
        try:
            await self._bring_small(self.handle(number).file)
        except BaseException:
            self.release(number)
            raise
        return number

    async def open_to_write(self, node: Node, flags: int, pid: int = 0) -> int:
        """``open`` for writing, with the bytes of a small file if it is to be read too, or appended to.

        So what was replaced is met as by ``open_to_read``, and a change of a part keeps the rest of what it was
        based on. While S3 cannot be reached it goes on without. Raises OSError (ESTALE), StoreError.
        """
        content = node.content
        is_small = content is not None and content.size <= self._filler.small_bytes_max
        if not is_small or not flags & (os.O_RDWR | os.O_APPEND):
            return self.open(node, flags, pid)
        must_be_in_place(node)
        # What is open for writing keeps its name, also where somebody replaced it: so it is not that yet.
        held = self.open(node, os.O_RDONLY, pid, is_read_by_program=False)
        try:
            await self._bring_small(self.handle(held).file, is_needed=False)
            return self.open(node, flags, pid)
        finally:
            self.release(held)

    async def _bring_small(self, file: OpenFile, *, is_needed: bool = True) -> None:
        """Raises OSError (ESTALE), StoreError; no passing one unless ``is_needed``."""
        node, content = file.node, file.node.content
        if file.blob is not None or content is None or self._store.outage:
            return
        if content.size > INLINE_BODY_BYTES_MAX or node.size == 0:
            return
        if self._reader_of(file, content).read_now(0, 1) is not None:
            return
        try:
            await self._read_pinned(file, 0, 1)
        except (PreconditionFailedError, NoSuchKeyError):
            await self._directories.ask_anew(node)
        except S3MountError as error:
            if error.retryable and is_needed:
                raise
            log.info("%r was opened, but not read: %s", content.key, error)

    def _hold(self, node: Node) -> OpenFile:
        file = self._files.hold(node)
        if file.blob is None:
            file.blob = self.writing.pending_blob(node)
        return file

    def follow_pending(self) -> None:
        """After a move: open files read from the blob that what they hold is fetched into, if it is."""
        for file in self._files.all():
            if file.blob is None and file.node.linked:
                file.blob = self.writing.pending_blob(file.node)

    def release(self, number: int) -> None:
        """Close a handle; the last writer's close lets the file go to S3. Raises LocalDiskError."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return
        file = handle.file
        file.handles -= 1
        file.writers -= handle.writes
        try:
            if file.writers == 0 and handle.writes:
                self._closed(file)
        finally:
            if file.handles == 0:
                self._let_go(file)

    def _closed(self, file: OpenFile) -> None:
        change = self._state.change_of(file.node)
        if change is not None and change.state is State.OPEN:
            self._fold_attributes(file, change)
            self._uploader.closed(change)

    def _let_go(self, file: OpenFile) -> None:
        if file.handles or file.lock.locked():
            return
        self._files.let_go(file)
        file.forget_reader()
        if file.pinned is not None:
            self._reader.unpin(file.pinned)
        blob = file.blob
        if blob is None:
            return
        file.blob = None
        blob.release()
        change = self._state.change_of(file.node)
        if blob_id_of(change) == blob.id:
            return
        # S3 has it, or nobody wants it any more.
        content = file.node.content
        if file.node.linked and content is not None and blob.base is None:
            self._filler.to_cache(blob, content)
        else:
            self._state.spool.drop_blob(blob)

    # ------------------------------------------------------------------ reading

    async def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``. Raises OSError, S3MountError."""
        file = handle.file
        blob = file.blob
        if blob is not None:
            aside: Aside = {}
            if blob.base is not None and blob.missing(offset, min(offset + length, blob.size)):
                await self._filler.fill_blob(
                    blob, offset, offset + length, self._base_gone(file), aside=aside
                )
                blob = file.blob or blob
            return read_with(blob, aside, offset, length)
        node = file.node
        if node.content is None or offset >= node.size:
            return b""
        reader = self._reader_of(file, node.content)
        data = reader.read_now(offset, length)
        if data is None:
            try:
                data = await self._read_pinned(file, offset, length)
            except (S3MountError, OSError):
                file.refused |= handle.writes
                raise
        self._follow_reading(file, offset, data)
        return data

    def _follow_reading(self, file: OpenFile, offset: int, data: bytes) -> None:
        """Learn what the content is, in case it is written elsewhere."""
        content = file.node.content
        if content is None:
            return
        if file.track is None or file.track[0] != content:
            file.track = (content, self._known.track(content))
        track = file.track[1]
        if track is not None and self._known.saw(track, offset, data):
            file.track = (content, None)

    def _reader_of(self, file: OpenFile, content: ContentRef) -> ReadHandle:
        if file.reader is None:
            file.reader = self._reader.open(content)
        return file.reader

    async def _read_pinned(self, file: OpenFile, offset: int, length: int) -> bytes:
        """Read through the cache; when our own upload just replaced the version, by the new one."""
        for _ in range(VERSION_RETRIES):
            content = file.node.content
            if content is None:
                break
            try:
                data = await self._reader_of(file, content).read(offset, length)
                self.archived.passed(content.key)
                return data
            except ArchivedError as error:
                self.archived.note(content.key, content.version_id, why(error))
                raise
            except (PreconditionFailedError, NoSuchKeyError):
                again = await self._found_again(file, content, lambda: file.node.content)
                if again != content:
                    file.forget_reader()
                    file.node.content = again
        raise OSError(errno.ESTALE, "the version that was opened is gone")

    async def _found_again(
        self, file: OpenFile, content: ContentRef, now: Callable[[], ContentRef | None]
    ) -> ContentRef | None:
        """The ``content`` of ``file`` is not in S3 any more: the same bytes as a write of our own left them there.

        An answer of that write may still be on its way, or never come. It is ``now()`` where that tells of another
        meanwhile, and ``content`` itself where it is to be tried again. Raises PreconditionFailedError when
        somebody else replaced them, and StoreError.
        """
        if now() != content:
            return now()
        is_sending = self._uploader.queue.is_sending(content.key)
        again = await self._uploader.sender.found_again(content, file.places)
        if now() != content:
            return now()
        if again is not None:
            return again
        if not is_sending:
            raise PreconditionFailedError("somebody else replaced it", key=content.key, status=412)
        await trio.sleep(VERSION_RETRY_S)
        return now()

    def _base_gone(self, file: OpenFile) -> OnGone:
        """What is below the blob of ``file`` was replaced, perhaps by an upload of our own."""

        async def on_gone(blob: Blob, base: ContentRef) -> ContentRef | None:
            return await self._found_again(file, base, lambda: blob.base)

        return on_gone

    async def read_whole(self, node: Node) -> bytes:
        """All bytes of a small node, such as a symbolic link's target. Raises OSError, S3MountError."""
        number = self.open(node, os.O_RDONLY, is_read_by_program=False)
        try:
            return await self.read(self.handle(number), 0, max(node.size, 1))
        finally:
            self.release(number)

    # ------------------------------------------------------------------ writing

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Put ``data`` at ``offset``; all of it. Raises OSError, S3MountError."""
        file = handle.file
        if offset + len(data) > FILE_BYTES_MAX:
            raise OSError(errno.EFBIG, "S3 objects end at 5 TiB")
        spool = self._state.spool
        if not spool.has_room(len(data)):
            await self._wait_for_room(len(data))
        blob = file.blob
        change = self._state.change_of(file.node)
        if blob is None or change is None or file.lock.locked() or not _is_ready(change, blob):
            blob = await self.writing.make_writable(file)
            self._filler.fill_at_hand(blob)
        before_bytes = blob.extents.total
        try:
            blob.write(offset, data)
        finally:
            spool.grew(blob.extents.total - before_bytes)
            file.node.size = blob.size
            file.wrote = True
        if blob.size >= file.stream_at:
            self._offer_stream(file, blob)
        return len(data)

    def _offer_stream(self, file: OpenFile, blob: Blob) -> None:
        """A part's worth was written: let the uploader see whether parts can leave already."""
        part_bytes = self._state.config.part_bytes
        file.stream_at = (blob.size // part_bytes + 1) * part_bytes
        change = self._state.change_of(file.node)
        if not isinstance(change, Put) or looks_temporary(file.node.name):
            return
        if change.inherits is not None:
            # An upload in parts carries its headers from its beginning on.
            return
        streaming = self._uploader.streaming
        if streaming.is_worth_it(blob) and not self._is_known_so_far(file, blob):
            streaming.grown(change, blob)

    def _is_known_so_far(self, file: OpenFile, blob: Blob) -> bool:
        """Does it go like a content that S3 has? Then it may turn out that nothing is to be sent."""
        if blob.upload is not None:
            return False
        known = self._known
        if file.matcher is None or file.matcher[0] != blob.id:
            file.matcher = (blob.id, known.matcher(blob))
        matcher = file.matcher[1]
        return matcher is not None and known.still_matches(matcher, blob)

    async def _wait_for_room(self, size_bytes: int) -> None:
        """Slow a writer down while the spool is full. Raises OSError (ENOSPC) when nothing moves."""
        spool = self._state.spool
        self._uploader.hurry()
        try:
            while not spool.has_room(size_bytes):
                with trio.move_on_after(self._state.config.room_wait_s) as waited:
                    await spool.wait_for_room()
                if waited.cancelled_caught:
                    raise OSError(errno.ENOSPC, "the spool is full and uploads make no room")
        finally:
            self._uploader.relax()

    async def truncate(self, node: Node, size: int) -> None:
        """Set a file's size. Raises OSError, S3MountError."""
        if size > FILE_BYTES_MAX:
            raise OSError(errno.EFBIG, "S3 objects end at 5 TiB")
        must_be_in_place(node)
        file = self._hold(node)
        file.handles += 1
        try:
            if size == 0 and file.blob is None:
                await self._directories.know_headers_or_inherit(node)
                file.blob = (
                    file.blob or self.writing.pending_blob(node) or self._state.spool.new_blob()
                )
            elif size and node.size <= self._filler.small_bytes_max:
                await self._bring_small(file, is_needed=False)
            blob = await self.writing.make_writable(file)
            if size:
                self._filler.fill_at_hand(blob)
            self._state.spool.grew(-blob.truncate(size))
            if size == 0:
                blob.detach()
            node.size = size
            file.wrote = True
            if file.writers == 0:
                await self._filler.complete_small(blob, self._base_gone(file))
            if file.writers == 0:
                self.commit(file)
                self._closed(file)
        finally:
            file.handles -= 1
            self._let_go(file)

    def was_refused(self, node: Node) -> bool:
        """Did a program try to write to the open file, and nothing came of it?"""
        file = self._files.of(node)
        return file is not None and file.refused and file.blob is None

    # ------------------------------------------------------------------ closing

    def fold(self, node: Node) -> None:
        """Let writes since the last look show in the attributes: mtime and ctime are now.

        Where the kernel keeps the mtime of what it writes back, it tells it, before every flush and fsync; it
        tells nothing when the time that it shows has not changed, and then nothing is to be stored either.
        """
        file = self._files.of(node)
        if file is not None and file.wrote:
            file.wrote = False
            now_ns = self._state.now_ns()
            mtime_ns = node.attributes.mtime_ns if self._state.kernel_keeps_mtime else now_ns
            node.attributes = changed(node.attributes, mtime_ns=mtime_ns, ctime_ns=now_ns)

    def _fold_attributes(self, file: OpenFile, change: PutOrCopy) -> None:
        self.fold(file.node)
        change.attributes = file.node.attributes

    def commit(self, file: OpenFile) -> None:
        """Journal what was written so far: it survives kill -9 from here on. Raises LocalDiskError."""
        change = self._state.change_of(file.node)
        if change is None or change.state is not State.OPEN or file.blob is None:
            return
        self._fold_attributes(file, change)
        self._state.spool.save(change)

    async def _complete(self, file: OpenFile) -> None:
        change = self._state.change_of(file.node)
        if file.blob is not None and change is not None and change.state is State.OPEN:
            await self._filler.complete_small(file.blob, self._base_gone(file))

    async def flush(self, handle: Handle) -> None:
        """close() of one descriptor: journal it, and line it up when this is the only writer. Raises LocalDiskError."""
        file = handle.file
        if handle.writes:
            await self._complete(file)
        change = self._state.change_of(file.node)
        if not handle.writes or change is None or change.state is not State.OPEN:
            return
        if file.writers == 1:
            self._fold_attributes(file, change)
            self._uploader.closed(change)
        else:
            self.commit(file)

    async def fsync(self, handle: Handle) -> None:
        """Journal it and force it to disk: it survives a power cut from here on. Raises OSError.

        With ``--fsync s3`` it returns when S3 has it, or with the error of the try to send it.
        """
        await self._complete(handle.file)
        self.commit(handle.file)
        change = self._state.change_of(handle.file.node)
        await self._state.spool.force(handle.file.blob, change)
        if self._state.config.fsync == "s3":
            await self._barrier.wait(handle.file.node, handle.pid)

    async def wait_closed(self, handle: Handle) -> None:
        """With ``--write-through``: return when S3 has what was written, as for ``fsync``. Raises OSError."""
        if self._state.config.write_through and handle.writes:
            await self._barrier.wait(handle.file.node, handle.pid)


def _is_ready(change: PutOrCopy, blob: Blob) -> bool:
    """May ``blob`` be written at once, as the last change of ``change`` was a write to it as well?"""
    if not isinstance(change, Put):
        return False
    is_of_it = change.state is State.OPEN and change.blob_id == blob.id
    return is_of_it and change.content_seq == change.seq and not blob.is_being_sent


TEMPORARY_SUFFIXES = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".filepart", "~")


def looks_temporary(name: str) -> bool:
    """Does the name look like one that is renamed once it is complete?

    rsync, editors, browsers and package tools write such files; what was streamed under a name that
    then goes away would have to be sent again, so these wait for close().

    >>> looks_temporary(".data.bin.Xa81Zq"), looks_temporary("film.mkv.part"), looks_temporary("film.mkv")
    (True, True, False)
    """
    return name.startswith(".") or name.endswith(TEMPORARY_SUFFIXES)
