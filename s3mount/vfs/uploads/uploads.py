"""What uploads mean for the file system: nodes, cache and remembered attributes follow what S3 has."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec

from s3mount.background import contained
from s3mount.cache.reader import CacheReader
from s3mount.refs import ContentRef, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.spool.journal.changes import Change, Copy, Delete, Put, PutOrCopy, blob_id_of
from s3mount.spool.journal.put_log import PutLog
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.events import (
    Answered,
    Conflicted,
    ConflictOutcome,
    ContentUploaded,
    GivenUp,
    NotInS3,
    Report,
    Uploaded,
    UploadedEarlier,
    UploadEvent,
)
from s3mount.spool.upload.provider import ContentProvider
from s3mount.tree.memory import HeadMemory
from s3mount.tree.node import Node
from s3mount.vfs.state import MountState
from s3mount.vfs.uploads.dedupe import Deduplicator
from s3mount.vfs.uploads.filling import BlobFiller

CONFLICTS_SHOWN_MAX = 20
"""So many of the last conflicts are told by status."""


class Conflict(NamedTuple):
    """Somebody else wrote a key first, at ``at_ns`` of our clock, and what became of ours."""

    at_ns: int
    key: Key
    outcome: ConflictOutcome
    kept_as: Key


class UploadOutcomes:
    """Draws the consequences of what the uploader reports. ``conflicts`` are the last ones, oldest first."""

    def __init__(
        self,
        state: MountState,
        filler: BlobFiller,
        provider: ContentProvider,
        capabilities: KnownCapabilities,
        reader: CacheReader,
        known: Deduplicator,
        memory: HeadMemory,
        puts: PutLog,
    ) -> None:
        self._state = state
        self._capabilities = capabilities
        self._reader = reader
        self._known = known
        self._memory = memory
        self._filler = filler
        self._provider = provider
        self._puts = puts
        self.conflicts: deque[Conflict] = deque(maxlen=CONFLICTS_SHOWN_MAX)
        self.listeners: list[Report] = []

    def take(self, event: UploadEvent) -> None:
        """See ``spool.events.Report``. ``listeners`` are told last."""
        self._follow(event)
        for tell in self.listeners:
            tell(event)

    def _follow(self, event: UploadEvent) -> None:
        match event:
            case Answered(answers):
                self._puts.stored(answers)
            case Uploaded(change, result):
                self._uploaded(change, result)
            case UploadedEarlier(change, content):
                self._uploaded_earlier(change, content)
            case ContentUploaded(copy, blob_id, content):
                self._content_uploaded(copy, blob_id, content)
            case GivenUp(change):
                self._given_up(change)
            case Conflicted(key, outcome, kept_as):
                self.conflicts.append(Conflict(self._state.now_ns(), key, outcome, kept_as))
            case NotInS3(key):
                self._known.gone(key)

    def _finished(self, key: Key) -> None:
        with contained(f"{key!r} is in S3, and a listing may not know it"):
            self._state.finished.note(key)

    def _not_known(self, key: Key) -> None:
        with contained("the index of contents is not told"):
            self._known.gone(key)

    def _uploaded(self, change: Change, result: PutResult | None) -> None:
        self._finished(change.key)
        if result is None:
            self._not_known(change.key)
            self._state.local_folders.discard(change.key)
        elif change.key.endswith("/") and not self._capabilities.holds_markers:
            self._state.local_folders.add(change.key)
        elif not isinstance(change, Delete):
            self._stored(change, result)

    def _uploaded_earlier(self, change: Change, content: ContentRef | None) -> None:
        self._finished(change.key)
        self._not_known(change.key)
        blob = self._state.spool.blob_of(change)
        own_base = blob is not None and blob.base is not None and blob.base.key == change.key
        if blob is not None and own_base and content is not None:
            # What is not here is in the new version at the same place.
            blob.base = content

    def _content_uploaded(self, change: Copy, blob_id: str, content: ContentRef) -> None:
        self._finished(change.key)
        node = self._state.find(change.key)
        with contained("the index of contents is not told"):
            self._known.stored(content, self._state.spool.live_blobs.get(blob_id))
        self._place_blob(node, blob_id, content)
        if node is not None and not node.is_directory:
            node.content = content

    def _place_blob(self, node: Node | None, blob_id: str, content: ContentRef) -> None:
        """S3 has what is in the blob: it stays with who has it open, else becomes cache."""
        blob = self._state.spool.live_blobs.get(blob_id)
        if blob is None:
            return
        file = self._state.files.of(node) if node is not None else None
        if file is not None and file.blob is blob:
            if blob.base is not None:
                blob.base = content
        elif blob.complete:
            with contained("a file that was sent is not in the cache"):
                self._filler.to_cache(blob, content)
        if blob.id in self._state.spool.live_blobs:
            self._state.spool.drop_unless_open(blob)

    def _stored(self, change: PutOrCopy, result: PutResult) -> None:
        ref = ContentRef(change.key, result.etag, change.size, result.version_id)
        with contained("the cache and the index of contents are not told"):
            if isinstance(change, Copy):
                self._reader.relabel(change.source, ref)
                self._known.copied(change.source, ref)
            else:
                self._known.stored(ref, self._state.spool.blob_of(change))
        node = self._state.find(change.key)
        self._place_blob(node, blob_id_of(change), ref)
        is_ours = isinstance(change, Put) or change.replace_headers
        headers = self._carried_by(change) if is_ours else None
        if node is not None and not node.is_directory:
            self._note_stored(node, change, ref, result, headers)
        elif node is not None and node.directory is not None:
            node.directory.marker_etag = result.etag
        with contained("the attributes of what was sent are asked for again"):
            self._remember(ref, result, headers if is_ours else change.headers)

    def _remember(self, ref: ContentRef, result: PutResult, headers: ObjectHeaders | None) -> None:
        if headers is None:
            self._memory.forget([ref.key])
            return
        modified_ns = result.date_ns or self._state.now_ns()
        known = ObjectInfo(ref.key, ref.size, ref.etag, modified_ns, headers=headers)
        self._memory.remember([known])

    def _carried_by(self, change: PutOrCopy) -> ObjectHeaders:
        """What is stored beside the object that ``change`` made: an upload of parts carries what it began with."""
        if not isinstance(change, Put) or change.upload_attributes is None:
            return self._provider.headers_of(change)
        sent = msgspec.structs.replace(change, attributes=change.upload_attributes)
        return self._provider.headers_of(sent, with_times=not change.upload_streamed)

    def _note_stored(
        self,
        node: Node,
        change: PutOrCopy,
        ref: ContentRef,
        result: PutResult,
        headers: ObjectHeaders | None,
    ) -> None:
        """``headers`` are those that it was sent with; ``None``: it kept its source's."""
        node.content = ref
        node.last_modified_ns = result.date_ns or self._state.now_ns()
        file = self._state.files.of(node)
        if file is not None and isinstance(change, Put):
            file.forget_reader()
        blob = None if file is None else file.blob
        if blob is not None and isinstance(change, Copy) and blob.base == change.source:
            # What was written through the open file is in S3, and the rest of it has another ETag now.
            blob.base = ref
        if headers is not None:
            node.headers = headers
            node.attributes_known = True

    def _given_up(self, change: Change) -> None:
        node = self._state.find(change.key)
        if node is not None and node.parent is not None and node.parent.directory is not None:
            node.parent.directory.listed_at = float("-inf")
