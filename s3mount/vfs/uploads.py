"""What uploads mean for the file system: nodes, cache and remembered attributes follow what S3 has."""

from __future__ import annotations

import mimetypes
import socket
import time
from collections import deque
from typing import NamedTuple

import msgspec

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.spool.changes import ABSENT, Change, Copy, Delete, Put, PutOrCopy, blob_id_of, renamed
from s3mount.spool.hooks import ConflictOutcome
from s3mount.tree import attributes as codec
from s3mount.tree.node import Node
from s3mount.vfs.contents import Contents
from s3mount.vfs.state import MountState

CONFLICTS_SHOWN_MAX = 20
"""So many of the last conflicts are told by status."""


class Conflict(NamedTuple):
    """Somebody else wrote a key first, at ``at_ns`` of our clock, and what became of ours."""

    at_ns: int
    key: Key
    outcome: ConflictOutcome
    kept_as: Key


class UploadHooks:
    """``spool.hooks.Hooks`` for one mount. ``conflicts`` are the last ones, oldest first."""

    def __init__(self, state: MountState, contents: Contents) -> None:
        self._state = state
        self._contents = contents
        self.conflicts: deque[Conflict] = deque(maxlen=CONFLICTS_SHOWN_MAX)

    def headers_of(self, change: PutOrCopy, *, with_times: bool = True) -> ObjectHeaders:
        """See ``Hooks.headers_of``."""
        assert change.attributes is not None
        guessed, encoding = mimetypes.guess_type(change.key)
        content_type = guessed if guessed and encoding is None else "application/octet-stream"
        headers = codec.encode(
            change.attributes, change.headers, content_type=content_type, with_times=with_times
        )
        storage_class = self._state.config.store.new_objects.storage_class
        if storage_class is None or change.headers is not None:
            # An object that was there keeps its own; the default class is told as none.
            return headers
        return msgspec.structs.replace(headers, storage_class=storage_class)

    def carried_by(self, change: PutOrCopy) -> tuple[Attributes, bool]:
        """See ``Hooks.carried_by``."""
        assert change.attributes is not None
        headers = change.headers or ObjectHeaders()
        now = change.attributes
        # An mtime that was set, not written, is before the ctime: LastModified does not stand for it.
        default = msgspec.structs.replace(now, mtime_ns=now.ctime_ns)
        told = codec.decode(headers, default)
        return told, not codec.has_times(headers)

    def written_at_ns(self, headers: ObjectHeaders) -> int | None:
        """See ``Hooks.written_at_ns``."""
        return codec.written_at_ns(headers)

    async def fill(self, change: Put, start: int, stop: int) -> None:
        """See ``Hooks.fill``."""
        await self._contents.fill(change, start, stop)

    async def read_base(self, base: ContentRef, start: int, stop: int) -> bytes:
        """See ``Hooks.read_base``."""
        reader = self._state.reader.open(base)
        try:
            return await reader.read(start, stop - start)
        finally:
            reader.close()

    async def before_replace(self, change: Change) -> None:
        """See ``Hooks.before_replace``."""
        if not isinstance(change, Delete):
            await self._contents.inherit(change)
        await self._contents.keep_readable(change)

    async def find_in_s3(self, change: Put) -> ContentRef | None:
        """See ``Hooks.find_in_s3``."""
        return await self._state.known.find(change)

    def not_in_s3(self, key: Key) -> None:
        """See ``Hooks.not_in_s3``."""
        self._state.known.gone(key)

    def _finished(self, key: Key) -> None:
        for finished in self._state.on_finished:
            with contained(f"{key!r} is in S3, and a listing may not know it"):
                finished(key)

    def _not_known(self, key: Key) -> None:
        with contained("the index of contents is not told"):
            self._state.known.gone(key)

    def uploaded(self, change: Change, result: PutResult | None) -> None:
        """See ``Hooks.uploaded``."""
        self._finished(change.key)
        if result is None:
            self._not_known(change.key)
            self._state.local_folders.discard(change.key)
        elif change.key.endswith("/") and not self._state.capabilities.holds_markers:
            self._state.local_folders.add(change.key)
        elif not isinstance(change, Delete):
            self._stored(change, result)

    def uploaded_earlier(self, change: Change, content: ContentRef | None) -> None:
        """See ``Hooks.uploaded_earlier``."""
        self._finished(change.key)
        self._not_known(change.key)
        blob = self._state.spool.blob_of(change)
        own_base = blob is not None and blob.base is not None and blob.base.key == change.key
        if blob is not None and own_base and content is not None:
            # What is not here is in the new version at the same place.
            blob.base = content

    def content_uploaded(self, change: Copy, blob_id: str, content: ContentRef) -> None:
        """See ``Hooks.content_uploaded``."""
        self._finished(change.key)
        node = self._state.find(change.key)
        with contained("the index of contents is not told"):
            self._state.known.stored(content, self._state.spool.live_blobs.get(blob_id))
        self._place_blob(node, blob_id, content)
        if node is not None and not node.is_directory:
            node.content = content

    def _place_blob(self, node: Node | None, blob_id: str, content: ContentRef) -> None:
        """S3 has what is in the blob: it stays with who has it open, else becomes cache."""
        blob = self._state.spool.live_blobs.get(blob_id)
        if blob is None:
            return
        file = self._contents.open_file(node) if node is not None else None
        if file is not None and file.blob is blob:
            if blob.base is not None:
                blob.base = content
        elif blob.complete:
            with contained("a file that was sent is not in the cache"):
                self._contents.to_cache(blob, content)
        if blob.id in self._state.spool.live_blobs:
            self._state.spool.on_unused(blob)

    def _stored(self, change: PutOrCopy, result: PutResult) -> None:
        ref = ContentRef(change.key, result.etag, change.size, result.version_id)
        with contained("the cache and the index of contents are not told"):
            if isinstance(change, Copy):
                self._state.reader.relabel(change.source, ref)
                self._state.known.copied(change.source, ref)
            else:
                self._state.known.stored(ref, self._state.spool.blob_of(change))
        node = self._state.find(change.key)
        self._place_blob(node, blob_id_of(change), ref)
        if node is not None and not node.is_directory:
            self._note_stored(node, change, ref, result)
        elif node is not None and node.directory is not None:
            node.directory.marker_etag = result.etag
        with contained("the attributes of what was sent are asked for again"):
            self._remember(change, ref, result)

    def _remember(self, change: PutOrCopy, ref: ContentRef, result: PutResult) -> None:
        is_ours = isinstance(change, Put) or change.replace_headers
        headers = self._carried_by(change) if is_ours else change.headers
        if headers is None:
            self._state.memory.forget([ref.key])
            return
        modified_ns = result.date_ns or self._state.now_ns()
        known = ObjectInfo(ref.key, ref.size, ref.etag, modified_ns, headers=headers)
        self._state.memory.remember([known])

    def _carried_by(self, change: PutOrCopy) -> ObjectHeaders:
        """What is stored beside the object that ``change`` made: an upload of parts carries what it began with."""
        if not isinstance(change, Put) or change.upload_attributes is None:
            return self.headers_of(change)
        sent = msgspec.structs.replace(change, attributes=change.upload_attributes)
        return self.headers_of(sent, with_times=not change.upload_streamed)

    def _note_stored(
        self, node: Node, change: PutOrCopy, ref: ContentRef, result: PutResult
    ) -> None:
        node.content = ref
        node.last_modified_ns = result.date_ns or self._state.now_ns()
        file = self._contents.open_file(node)
        if file is not None and file.reader is not None and isinstance(change, Put):
            file.reader.close()
            file.reader = None
        blob = None if file is None else file.blob
        if blob is not None and isinstance(change, Copy) and blob.base == change.source:
            # What was written through the open file is in S3, and the rest of it has another ETag now.
            blob.base = ref
        if isinstance(change, Put) or change.replace_headers:
            node.headers = self._carried_by(change)
            node.attributes_known = True

    def lost(self, change: Change) -> None:
        """See ``Hooks.lost``."""
        node = self._state.find(change.key)
        if node is not None and node.parent is not None and node.parent.directory is not None:
            node.parent.directory.listed_at = float("-inf")

    def conflicted(self, key: Key, outcome: ConflictOutcome, kept_as: Key = "") -> None:
        """See ``Hooks.conflicted``."""
        self.conflicts.append(Conflict(self._state.now_ns(), key, outcome, kept_as))

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
