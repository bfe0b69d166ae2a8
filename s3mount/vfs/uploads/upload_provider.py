"""What the uploader asks of a mount: headers from the attributes of a file, and bytes through cache and open files."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

import msgspec

from s3mount.cache.reader import CacheReader
from s3mount.crashpoints import crashpoint
from s3mount.errors import NoSuchKeyError, PreconditionFailedError
from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put, PutOrCopy, renamed
from s3mount.spool.upload.provider import FindAgain
from s3mount.tree import attributes as codec
from s3mount.vfs.open_files import OpenFile
from s3mount.vfs.state import MountState
from s3mount.vfs.stored import StoredAttributes
from s3mount.vfs.uploads.dedupe import Deduplicator
from s3mount.vfs.uploads.filling import BlobFiller


class UploadProvider:
    """``spool.provider.ContentProvider`` for one mount."""

    def __init__(
        self,
        state: MountState,
        filler: BlobFiller,
        attributes: StoredAttributes,
        reader: CacheReader,
        known: Deduplicator,
    ) -> None:
        self._state = state
        self._reader = reader
        self._known = known
        self._filler = filler
        self._attributes = attributes

    def headers_of(self, change: PutOrCopy, *, with_times: bool = True) -> ObjectHeaders:
        """See ``ContentProvider.headers_of``."""
        assert change.attributes is not None
        headers = codec.encode(
            change.attributes,
            change.headers,
            content_type=codec.content_type_of(change.key),
            with_times=with_times,
        )
        storage_class = self._state.config.store.new_objects.storage_class
        if storage_class is None or change.headers is not None:
            # An object that was there keeps its own; the default class is told as none.
            return headers
        return msgspec.structs.replace(headers, storage_class=storage_class)

    def carried_by(self, change: PutOrCopy) -> tuple[Attributes, bool]:
        """See ``ContentProvider.carried_by``."""
        assert change.attributes is not None
        headers = change.headers or ObjectHeaders()
        now = change.attributes
        # An mtime that was set, not written, is before the ctime: LastModified does not stand for it.
        default = msgspec.structs.replace(now, mtime_ns=now.ctime_ns)
        told = codec.decode(headers, default)
        return told, not codec.has_times(headers)

    def written_at_ns(self, headers: ObjectHeaders) -> int | None:
        """See ``ContentProvider.written_at_ns``."""
        return codec.written_at_ns(headers)

    async def fill(self, change: Put, start: int, stop: int) -> None:
        """See ``ContentProvider.fill``."""
        blob = self._state.spool.blob_of(change)
        if blob is None or not blob.missing(start, stop):
            return
        try:
            await self._filler.fill_blob(blob, start, stop)
        finally:
            if not blob.open_files:
                blob.release()

    async def read_base(self, base: ContentRef, start: int, stop: int) -> bytes:
        """See ``ContentProvider.read_base``."""
        reader = self._reader.open(base)
        try:
            return await reader.read(start, stop - start)
        finally:
            reader.close()

    async def before_replace(self, change: Change, find: FindAgain) -> None:
        """See ``ContentProvider.before_replace``."""
        if not isinstance(change, Delete):
            await self._attributes.inherit(change)
        await self._keep_readable(change, find)

    async def _keep_readable(self, change: Change, find: FindAgain) -> None:
        """Fetch what open files still need of the version that ``change`` destroys. Raises S3MountError."""
        files = self._state.files
        for file in files.all():
            node = file.node
            own = self._state.change_of(node) is change and node.linked
            content = file.blob.base if file.blob is not None else node.content
            if own or content is None:
                continue
            if change.key != content.key and change.key not in file.places:
                continue
            if isinstance(change, Copy) and change.source == content:
                continue
            if file.blob is not None:
                await self._complete(file.blob, file.places, find)
            elif file.pinned is None:
                await self._pin(file, content, find)

    async def _complete(self, blob: Blob, places: Iterable[Key], find: FindAgain) -> None:
        async def on_gone(blob: Blob, base: ContentRef) -> ContentRef:
            return await _again(base, places, find)

        await self._filler.fill_blob(blob, 0, blob.base_limit, on_gone)
        blob.detach()

    async def _pin(self, file: OpenFile, content: ContentRef, find: FindAgain) -> None:
        try:
            await self._reader.materialize(content)
        except (PreconditionFailedError, NoSuchKeyError):
            again = await _again(content, file.places, find)
            await self._reader.materialize(again)
            if file.node.content == content:
                file.forget_reader()
                file.node.content = again
            content = again
        if self._state.files.of(file.node) is file:
            file.pinned = content
        else:
            self._reader.unpin(content)

    async def find_in_s3(self, change: Put) -> ContentRef | None:
        """See ``ContentProvider.find_in_s3``."""
        return await self._known.find(change)

    def keep_both(self, change: PutOrCopy) -> Key:
        """Somebody else wrote first: the local state goes to a name of its own, theirs keeps the name."""
        spool = self._state.spool
        node = self._state.find(change.key)
        old_key = change.key
        new_key = self._conflict_key(old_key)
        spool.record([renamed(change, new_key, expected=ABSENT)], [old_key])
        crashpoint("conflict: recorded")
        if node is not None and node.parent is not None:
            parent = node.parent
            self._state.nodes.move(node, parent, new_key.rsplit("/", 1)[-1])
            if parent.directory is not None:
                parent.directory.listed_at = float("-inf")
        return new_key

    def _conflict_key(self, key: str) -> str:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._state.now_ns() / 1e9))
        host = socket.gethostname().split(".")[0] or "host"
        candidate = f"{key}.conflict-{host}-{stamp}"
        number = 1
        while candidate in self._state.spool.changes:
            number += 1
            candidate = f"{key}.conflict-{host}-{stamp}-{number}"
        return candidate


async def _again(content: ContentRef, places: Iterable[Key], find: FindAgain) -> ContentRef:
    """``content`` as a write of our own, whose answer was lost, left it. Raises StoreError."""
    again = await find(content, places)
    if again is None:
        raise PreconditionFailedError("somebody else replaced it", key=content.key, status=412)
    return again
