"""One content while somebody uses it: its blocks, its file, who reads it and who waits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import trio

from s3mount.cache.blocks import BlockMap, shift_for
from s3mount.errors import S3MountError
from s3mount.refs import ContentRef, ETag, ObjectInfo, VersionId
from s3mount.s3.store import INLINE_BODY_BYTES_MAX


def digest_of(namespace: str, ref: ContentRef) -> bytes:
    """16 bytes that name the content; no two contents share them."""
    hasher = hashlib.blake2b(digest_size=16)
    version = "-" if ref.version_id is None else f"+{ref.version_id}"
    for field in (namespace, ref.key, ref.etag, version, str(ref.size)):
        encoded = field.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(encoded))
        hasher.update(encoded)
    return hasher.digest()


class Holder(Protocol):
    """Somebody who reads an entry."""

    def kept_ranges(self) -> list[tuple[int, int]]:
        """Byte ranges that are about to be read and should not be taken away."""
        ...


class Waiter:
    """A read that waits for the blocks ``[first, stop)``.

    Once ``event`` is set: ``error`` is what hindered it, ``no_disk`` says that the blocks cannot
    be stored; neither: look again.
    """

    __slots__ = ("error", "event", "first", "no_disk", "stop")

    def __init__(self, first: int, stop: int) -> None:
        self.first = first
        self.stop = stop
        self.event = trio.Event()
        self.error: S3MountError | None = None
        self.no_disk = False


class BlockFetch:
    """One request for the blocks ``[first, stop)`` of an entry, of which ``[first, reached)`` are there.

    ``owner`` is whoever wanted it ahead of time, ``None`` once somebody waits for it. A ``hasty``
    one has no blocks of its own: another request brings them too, but later. ``on_end`` are called at
    its end, well or not.
    """

    __slots__ = (
        "ahead",
        "body",
        "claimed",
        "done",
        "entry",
        "error",
        "file",
        "first",
        "hasty",
        "info",
        "on_end",
        "owner",
        "reached",
        "scope",
        "started",
        "stop",
    )

    def __init__(self, entry: Entry, first: int, stop: int, owner: object | None) -> None:
        self.entry = entry
        self.first = self.reached = first
        self.stop = stop
        self.owner = owner
        self.ahead = owner is not None
        self.claimed = False
        self.hasty = False
        self.started = False
        self.scope = trio.CancelScope()
        self.file = ""
        self.done = trio.Event()
        self.body: bytes | None = None
        self.error: S3MountError | None = None
        self.info: ObjectInfo | None = None
        self.on_end: list[Callable[[], None]] = []


class Entry:
    """The state of one content of at least one byte. Plain data: ``DiskCache`` and ``BlockFetcher`` change it.

    ``digest`` is ``None`` for a private entry, which ends with its last user. ``small`` contents
    are held whole or not at all: as ``body``, as a file, or both. ``descriptor`` is -1 when no
    file is open; it holds the shared lock. ``held_bytes`` counts present and coming blocks and
    ``slack_bytes``, what else the file takes; ``recorded_bytes`` is what the catalog counts for it.
    ``sums``: the file has checksums of its blocks; ``unproven`` has a 1 for each block that an earlier
    life stored and that was not held against its checksum yet (``None``: there is none).
    ``seen`` is the first answer for a content whose ETag is not known. ``told_version`` is the version
    id that an answer gave where the listing had none; requests name it once the key holds another
    version (``replaced``). ``broken``: something unexpected happened to it, and its readers go past the cache.
    """

    __slots__ = (
        "body",
        "broken",
        "crc",
        "descriptor",
        "digest",
        "dirty",
        "fetches",
        "file",
        "held_bytes",
        "holders",
        "map",
        "pins",
        "punching",
        "recorded_bytes",
        "ref",
        "replaced",
        "revision",
        "row_digest",
        "saving",
        "seen",
        "size",
        "slack_bytes",
        "small",
        "small_fetch",
        "sums",
        "told_version",
        "unproven",
        "unsaved",
        "waiters",
        "whole",
    )

    def __init__(self, ref: ContentRef, digest: bytes | None) -> None:
        self.ref = ref
        self.digest = digest
        self.size = ref.size
        self.small = ref.size <= INLINE_BODY_BYTES_MAX
        self.map = BlockMap(ref.size, shift_for(ref.size))
        self.whole = False
        self.sums = False
        self.unproven: bytearray | None = None
        self.body: bytes | None = None
        self.broken = False
        self.unsaved = False
        self.file = ""
        self.descriptor = -1
        self.crc: int | None = None
        self.row_digest: bytes | None = None
        self.revision = 0
        self.held_bytes = 0
        self.recorded_bytes = 0
        self.slack_bytes = 0
        self.seen: ObjectInfo | None = None
        self.told_version: VersionId | None = None
        self.replaced = False
        self.dirty = False
        self.saving = False
        self.punching: trio.Event | None = None
        self.holders: set[Holder] = set()
        self.pins = 0
        self.fetches: set[BlockFetch] = set()
        self.small_fetch: BlockFetch | None = None
        self.waiters: list[Waiter] = []

    @property
    def pinned_version(self) -> bool:
        """Requests can name the version they want, so that bytes of another never arrive."""
        return self.if_match is not None or self.ref.version_id is not None

    @property
    def if_match(self) -> ETag | None:
        """The ETag to demand: the content's own, or else that of the first answer."""
        return self.ref.etag or (self.seen.etag if self.seen else "") or None

    @property
    def version_id(self) -> VersionId | None:
        """The version to ask for; ``None``: whatever the key holds, as long as the ETag is right."""
        return self.ref.version_id or (self.told_version if self.replaced else None)

    def note_replaced(self) -> None:
        """The key holds another version now, or none: ask for the content by its own, where that is known."""
        self.replaced = self.told_version is not None

    def relabel(self, ref: ContentRef) -> None:
        """The same bytes are to be had as ``ref``."""
        self.ref = ref
        self.told_version = None
        self.replaced = False

    @property
    def idle(self) -> bool:
        """Nobody needs it in memory."""
        return not (
            self.holders
            or self.pins
            or self.fetches
            or self.small_fetch
            or self.dirty
            or self.saving
            or self.waiters
            or self.punching is not None
        )

    def believe(self, first: int, stop: int) -> None:
        """The blocks are what their checksums say."""
        if self.unproven is not None:
            self.unproven[first:stop] = bytes(stop - first)
            if self.unproven.find(1) < 0:
                self.unproven = None

    def wake(self, first: int, stop: int) -> None:
        """Wake the readers for whom the arrival of ``[first, stop)`` completed what they wait for."""
        for waiter in self.waiters:
            if (
                waiter.first < stop
                and first < waiter.stop
                and self.map.covered(waiter.first, waiter.stop)
            ):
                waiter.event.set()

    def wake_failed(
        self, first: int, stop: int, error: S3MountError | None, *, no_disk: bool = False
    ) -> None:
        """Wake the readers that wait for any of ``[first, stop)``, which will not arrive."""
        for waiter in self.waiters:
            if waiter.first < stop and first < waiter.stop and not waiter.event.is_set():
                waiter.error = error
                waiter.no_disk = no_disk
                waiter.event.set()
