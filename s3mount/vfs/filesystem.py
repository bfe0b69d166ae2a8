"""The file system: the parts of vfs put together, its background work, and what it tells about itself."""

from __future__ import annotations

import logging
import mimetypes
import os
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from s3mount.cache.reader import CacheReader
from s3mount.clock import SystemClock, WallClock
from s3mount.config import MountConfig
from s3mount.errors import S3MountError
from s3mount.refs import Capabilities, ContentRef, ObjectHeaders, ObjectInfo, PutResult
from s3mount.s3.store import Store
from s3mount.spool.changes import ABSENT, Change
from s3mount.spool.spool import Spool
from s3mount.spool.states import State
from s3mount.spool.uploader import Uploader
from s3mount.tree import attributes as codec
from s3mount.tree.memory import HeadMemory
from s3mount.tree.nodes import Node, Nodes
from s3mount.vfs.contents import Contents
from s3mount.vfs.directories import OWN_DATE_SLACK_NS, Directories
from s3mount.vfs.metadata import Metadata
from s3mount.vfs.naming import Naming
from s3mount.vfs.state import OWN_NAME, MountState

log = logging.getLogger(__name__)

TOUCH_PERIOD_S = 1.0
"""Directory times reach their markers at most this often."""
PROBE_HEAD_START_S = 1.0
"""Uploads wait this long for what the probe finds: it takes about four round trips."""
WAIT_PERIOD_S = 0.02
STUCK_S = 1.0
"""With something refused and nothing on its way for this long, a waiter is told."""
SHOWN_MAX = 50
"""At most this many pending files are named by status."""


class Filesystem:
    """One mounted bucket (or prefix). Its parts: ``directories``, ``contents``, ``naming``, ``metadata``."""

    def __init__(
        self,
        *,
        config: MountConfig,
        store: Store,
        spool: Spool,
        reader: CacheReader,
        clock: WallClock | None = None,
        memory_path: Path | None = None,
    ) -> None:
        clock = clock or SystemClock()
        mounted_ns = clock.now_ns()
        state = MountState(
            config=config,
            store=store,
            spool=spool,
            reader=reader,
            memory=HeadMemory(memory_path or Path(config.cache_dir) / "attributes.sqlite"),
            clock=clock,
            nodes=None,  # type: ignore[arg-type]
            mounted_ns=mounted_ns,
        )
        state.nodes = Nodes(config.prefix, state.file_attributes(mounted_ns, stat.S_IFDIR))
        self.state = state
        self.config = config
        self.directories = Directories(state)
        self.contents = Contents(state, self.directories)
        self.naming = Naming(state, self.directories, self.contents)
        self.metadata = Metadata(state, self.directories, self.contents, self.naming)
        self.uploader = Uploader(
            spool,
            store,
            _UploadHooks(self),
            part_bytes=config.part_bytes,
            uploads_max=config.uploads_max,
            delay_s=config.upload_delay_s,
        )
        self.contents.uploader = self.uploader
        self.capabilities: dict[str, Any] = {}

    # --------------------------------------------------------------- background

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Upload and keep house until cancelled. ``started`` when it can serve."""
        try:
            async with trio.open_nursery() as nursery:
                self.state.nursery = nursery
                task_status.started()
                if self.config.read_only:
                    await trio.sleep_forever()
                probed = trio.Event()
                nursery.start_soon(self._probe, probed)
                nursery.start_soon(self._upload, probed)
                nursery.start_soon(self._store_touched_directories)
        finally:
            self.state.nursery = None
            self.state.memory.close()

    async def _upload(self, probed: trio.Event) -> None:
        """Upload for ever; while the store's habits are unknown it looks before each conditional write."""
        with trio.move_on_after(PROBE_HEAD_START_S):
            await probed.wait()
        await self.uploader.run()

    async def _probe(self, probed: trio.Event) -> None:
        """Learn what conditions the store honours."""
        try:
            found = await self._capabilities()
            self.capabilities = {name: getattr(found, name) for name in found.__struct_fields__}
        except S3MountError as error:
            self.capabilities = {"reason": str(error)}
            log.warning("what the store honours is unknown: %s", error)
        finally:
            probed.set()

    async def _capabilities(self) -> Capabilities:
        """What the store honours, as it was seen by an earlier mount or by trying now. Raises StoreError."""
        remembered = self.state.memory.recall_capabilities(self.state.now_ns())
        key = f"{self.config.prefix}{OWN_NAME}/probe-{os.getpid()}-{time.time_ns():x}"
        found = await self.state.store.probe(key, known=remembered)
        if remembered is None and found.if_match is not None:
            self.state.memory.remember_capabilities(found, self.state.now_ns())
        return found

    async def _store_touched_directories(self) -> None:
        while True:
            await trio.sleep(TOUCH_PERIOD_S)
            self.naming.store_touched()
            self.state.memory.flush(self.state.now_ns() - OWN_DATE_SLACK_NS)

    # ------------------------------------------------------------------ waiting

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        """Return when S3 has every change made so far (below ``paths``, if given; relative to the mount).

        Files still open for writing are not waited for. Raises S3MountError naming what S3 refuses.
        May be cancelled.
        """
        self.naming.store_touched()
        mark = self.state.spool.last_seq
        prefixes = tuple(self.config.prefix + path.strip("/") for path in paths)
        self.uploader.hurry()
        last_moved = trio.current_time()
        try:
            while True:
                left = [
                    change
                    for change in self.state.spool.changes.values()
                    if change.first_seq <= mark
                    and change.state is not State.OPEN
                    and (not prefixes or _is_below(change.key, prefixes))
                ]
                if not left:
                    return
                parked = [change for change in left if change.state is State.PARKED]
                moving = any(change.state is State.SENDING for change in left)
                last_moved = trio.current_time() if moving else last_moved
                if parked and trio.current_time() - last_moved > STUCK_S:
                    raise S3MountError(
                        f"S3 refuses {len(parked)} of the pending changes, first {parked[0].key!r}: "
                        f"{parked[0].error}"
                    )
                await trio.sleep(WAIT_PERIOD_S if len(left) < 1000 else 0.2)
        finally:
            self.uploader.relax()

    def pending(self) -> tuple[int, int]:
        """How many changes S3 does not have, and how many bytes they are."""
        changes = self.state.spool.changes.values()
        return len(changes), sum(change.size for change in changes if change.op == "put")

    # ------------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """The whole of it as plain values: pending, counters, limits, what the store honours."""
        changes = list(self.state.spool.changes.values())
        count, size_bytes = self.pending()
        by_state = {str(s): 0 for s in State if s is not State.DONE}
        for change in changes:
            by_state[str(change.state)] += 1
        troubled = [change for change in changes if change.error]
        shown = (troubled + [change for change in changes if not change.error])[:SHOWN_MAX]
        return {
            "bucket": self.config.store.bucket,
            "prefix": self.config.prefix,
            "mountpoint": self.config.mountpoint,
            "read_only": self.config.read_only,
            "pending": {
                "changes": count,
                "bytes": size_bytes,
                "states": by_state,
                "list": [_describe_change(change) for change in shown],
            },
            "spool": {
                "used_bytes": self.state.spool.used_bytes,
                "max_bytes": self.state.spool.size_bytes_max,
            },
            "uploads": dict(self.uploader.counters),
            "store_honours": self.capabilities,
            "cache": self.state.reader.statistics(),
            "inodes": len(self.state.nodes),
            "open_files": len(self.contents.open_files()),
            "ignored_keys": self.directories.ignored_keys,
        }

    async def status_of(self, path: str) -> dict[str, Any]:
        """Where one file stands. ``path`` is relative to the mount. Raises S3MountError, OSError."""
        node = self.state.nodes.root
        for name in [part for part in path.split("/") if part]:
            found = await self.directories.lookup(node, name)
            if found is None:
                raise S3MountError(f"{path}: no such file in the mount")
            node = found
        await self.directories.know_attributes_of(node)
        self.contents.fold(node)
        change = self.state.change_of(node)
        return {
            **self.metadata.describe(node),
            "path": path,
            "size": node.size,
            "mode": oct(node.attributes.mode),
            "mtime_ns": node.attributes.mtime_ns,
            "attempts": change.attempts if change is not None else 0,
        }


class _UploadHooks:
    """What the uploader asks of the file system, and tells it."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self._state = filesystem.state
        self._contents = filesystem.contents

    def headers_of(self, change: Change, *, with_times: bool = True) -> ObjectHeaders:
        assert change.attributes is not None
        guessed, encoding = mimetypes.guess_type(change.key)
        content_type = guessed if guessed and encoding is None else "application/octet-stream"
        headers = codec.encode(
            change.attributes, change.headers, content_type=content_type, with_times=with_times
        )
        storage_class = change.storage_class or self._state.config.storage_class
        if storage_class is None or storage_class == headers.storage_class:
            return headers
        return msgspec.structs.replace(headers, storage_class=storage_class)

    def written_at_ns(self, headers: ObjectHeaders) -> int | None:
        return codec.written_at_ns(headers)

    async def fill(self, change: Change, start: int, stop: int) -> None:
        await self._contents.fill(change, start, stop)

    async def before_replace(self, change: Change) -> None:
        await self._contents.keep_readable(change)

    def uploaded(self, change: Change, result: PutResult | None) -> None:
        for finished in self._state.on_finished:
            finished(change.key)
        if result is None:
            return
        self._stored(change, result)

    def uploaded_earlier(self, change: Change, content: ContentRef | None) -> None:
        for finished in self._state.on_finished:
            finished(change.key)
        blob = self._state.spool.live_blobs.get(change.blob_id)
        own_base = blob is not None and blob.base is not None and blob.base.key == change.key
        if blob is not None and own_base and content is not None:
            # What is not here is in the new version at the same place.
            blob.base = content

    def content_uploaded(self, change: Change, blob_id: str, content: ContentRef) -> None:
        for finished in self._state.on_finished:
            finished(change.key)
        node = self._state.find(change.key)
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
        elif blob.base is None:
            self._contents.to_cache(blob, content)
        else:
            self._state.spool.drop_blob(blob)

    def _stored(self, change: Change, result: PutResult) -> None:
        size = change.source.size if change.op == "copy" and change.source else change.size
        ref = ContentRef(change.key, result.etag, size, result.version_id)
        if change.op == "copy" and change.source is not None:
            self._state.reader.relabel(change.source, ref)
        node = self._state.find(change.key)
        self._place_blob(node, change.blob_id, ref)
        if node is not None and not node.is_directory:
            self._note_stored(node, change, ref, result)
        elif node is not None and node.directory is not None:
            node.directory.marker_etag = result.etag
        is_ours = change.op == "put" or change.replace_headers
        headers = self.headers_of(change) if is_ours else change.headers
        if headers is None:
            self._state.memory.forget(ref.key)
            return
        modified_ns = result.date_ns or self._state.now_ns()
        known = ObjectInfo(ref.key, ref.size, ref.etag, modified_ns, headers=headers)
        self._state.memory.remember([known])

    def _note_stored(self, node: Node, change: Change, ref: ContentRef, result: PutResult) -> None:
        node.content = ref
        node.last_modified_ns = result.date_ns or self._state.now_ns()
        file = self._contents.open_file(node)
        if file is not None and file.reader is not None and change.op == "put":
            file.reader.close()
            file.reader = None
        if change.op == "put" or change.replace_headers:
            node.headers = self.headers_of(change)
            node.attributes_known = True

    def lost(self, change: Change) -> None:
        node = self._state.find(change.key)
        if node is not None and node.parent is not None and node.parent.directory is not None:
            node.parent.directory.listed_at = float("-inf")

    def conflict(self, change: Change) -> None:
        """Somebody else wrote first: the local state goes to a name of its own, theirs keeps the name."""
        spool = self._state.spool
        node = self._state.find(change.key)
        old_key = change.key
        new_key = self._conflict_key(old_key)
        log.warning("both versions of %r are kept: yours is %r now", old_key, new_key)
        moved = Change(**{name: getattr(change, name) for name in change.__struct_fields__})
        moved.key, moved.expected, moved.state, moved.upload_id = new_key, ABSENT, State.QUEUED, ""
        moved.tried, moved.attempts, moved.error = [], 0, ""
        spool.record([moved], [old_key])
        if node is not None and node.parent is not None:
            parent = node.parent
            self._state.nodes.move(node, parent, new_key.rsplit("/", 1)[-1])
            if parent.directory is not None:
                parent.directory.listed_at = float("-inf")

    def _conflict_key(self, key: str) -> str:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._state.now_ns() / 1e9))
        host = socket.gethostname().split(".")[0] or "host"
        candidate = f"{key}.conflict-{host}-{stamp}"
        number = 1
        while candidate in self._state.spool.changes:
            number += 1
            candidate = f"{key}.conflict-{host}-{stamp}-{number}"
        return candidate


def _describe_change(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "op": change.op,
        "state": str(change.state),
        "size": change.size,
        "attempts": change.attempts,
        "error": change.error or None,
    }


def _is_below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + "/") or not prefix for prefix in prefixes)
