"""Small writes that come at about the same time, gathered into one pack each: one PUT for many, and its index.

Whoever puts waits until S3 has both. So a write has happened when it is answered, as with an object of its own; what
was under way when the process was killed has happened or not, and in the first case is found again by its name.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from s3mount.background import Background
from s3mount.clock import WallClock
from s3mount.errors import InternalError, PreconditionFailedError, S3MountError
from s3mount.pack.batch import About, Batch
from s3mount.pack.entry import time_ns
from s3mount.pack.finding import Loaded, Pack
from s3mount.pack.index import Index
from s3mount.pack.keeping import Keeper
from s3mount.pack.union import Member, Union, date_of
from s3mount.pack.writer import TAR_HEADERS, PackBatch, send_pack
from s3mount.refs import Condition, ETag, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.s3.store import Store

log = logging.getLogger(__name__)

PACK_BYTES = 16 << 20
"""A pack is closed when it has so many bytes. They are in memory until then."""
AGE_S = 3.0
"""And when its first member is so old."""
QUIET_S = 0.1
"""And when somebody waits for S3 and nothing more came for so long: that is all that packing costs them."""
SENT_AT_ONCE = 4


class Write:
    """A member or, without a body, a deletion. ``result`` or ``error`` is set when ``ended`` is.

    ``is_plain``: there is an object of its own under the key, and what is to be there has to replace that.
    """

    __slots__ = ("body", "condition", "ended", "error", "headers", "is_plain", "key", "result")

    def __init__(
        self, key: Key, body: bytes | None, headers: ObjectHeaders, condition: Condition
    ) -> None:
        self.key = key
        self.body = body
        self.headers = headers
        self.condition = condition
        self.ended = trio.Event()
        self.result: PutResult | None = None
        self.error: S3MountError | None = None
        self.is_plain = False


Present = Callable[[list[Key]], Awaitable[dict[Key, ObjectInfo]]]


class Gatherer:
    """Gathers writes below the folder ``prefix``. ``run`` is its background.

    ``keeper`` brings ``union`` up to date, ``present`` tells which of some keys are objects of their own now. A pack
    is closed as well when ``files`` writes wait. ``is_awaited``: does somebody wait for S3?
    """

    def __init__(
        self,
        store: Store,
        bucket: str,
        prefix: Key,
        keeper: Keeper,
        union: Union,
        present: Present,
        clock: WallClock,
        files: int,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix
        self._union = union
        self._keeper = keeper
        self._present = present
        self._clock = clock
        self._files = files
        self._waiting: list[Write] = []
        self._waiting_bytes = 0
        self._some = trio.Event()
        self._is_closed = False
        self.is_awaited: Callable[[], bool] = lambda: True

    async def write(self, write: Write) -> None:
        """Return when S3 has it, or when it is ``is_plain``. Raises S3MountError, PreconditionFailedError."""
        if self._is_closed:
            raise InternalError("the mount has ended")
        self._waiting.append(write)
        self._waiting_bytes += len(write.body or b"")
        self._some.set()
        try:
            await write.ended.wait()
        except trio.Cancelled:
            if write in self._waiting:
                self._waiting.remove(write)
            raise
        if write.error is not None:
            raise write.error

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is gathered, until cancelled."""
        slots = trio.CapacityLimiter(SENT_AT_ONCE)
        try:
            async with trio.open_nursery() as nursery:
                background = Background(nursery)
                task_status.started()
                while True:
                    await self._some.wait()
                    worker = object()
                    await slots.acquire_on_behalf_of(worker)
                    await self._gather()
                    writes, self._waiting = self._waiting, []
                    self._waiting_bytes = 0
                    background.start(self._send, writes, slots, worker)
        finally:
            self._is_closed = True
            self._end(self._waiting, InternalError("the mount has ended"))

    async def _gather(self) -> None:
        """Return when no more come, or enough, or the first has waited long enough."""
        deadline = trio.current_time() + AGE_S
        while (
            self._waiting_bytes < PACK_BYTES
            and len(self._waiting) < self._files
            and trio.current_time() < deadline
        ):
            self._some = trio.Event()
            with trio.move_on_after(QUIET_S) as quiet:
                await self._some.wait()
            if quiet.cancelled_caught and self.is_awaited():
                break
        self._some = trio.Event()

    @staticmethod
    def _end(writes: list[Write], error: S3MountError | None) -> None:
        for write in writes:
            if not write.ended.is_set():
                write.error = error if write.error is None else write.error
                write.ended.set()

    async def _send(self, writes: list[Write], slots: trio.CapacityLimiter, worker: object) -> None:
        error: S3MountError | None = InternalError("a pack was not written")
        try:
            await self._send_pack(writes)
            error = None
        except S3MountError as raised:
            log.info("a pack of %d is not written: %s", len(writes), raised)
            error = raised
        finally:
            slots.release_on_behalf_of(worker)
            if error is not None:
                self._keeper.outdate()
            self._end(writes, error)

    async def _send_pack(self, writes: list[Write]) -> None:
        """Write what may be, and note of the others why not. Raises S3MountError."""
        await self._keeper.freshen(0)
        plain = await self._present([write.key for write in writes])
        members: dict[Key, Member | None] = {}
        chosen = []
        for write in writes:
            key = write.key
            member = members[key] if key in members else self._union.find(key)
            if self._may(write, member, plain.get(key)):
                # What is told of it does not matter here, but that it is there.
                members[key] = None
                chosen.append(write)
        if not chosen:
            return
        self._union.last_ms = max(self._union.last_ms + 1, self._clock.now_ns() // 1_000_000)
        pack_id = f"{self._union.last_ms:013}-{secrets.token_hex(4)}"
        batch = Batch(pack_id, f"{self._prefix}{pack_id}.tar")
        try:
            if sum(len(write.body or b"") for write in chosen) > 1 << 20 or len(chosen) > 100:
                await trio.to_thread.run_sync(partial(self._fill, batch, chosen))
            else:
                self._fill(batch, chosen)
            sent = PackBatch(self._bucket, batch)
            await send_pack(self._store, self._prefix, sent, TAR_HEADERS)
        finally:
            batch.close()
        assert sent.tar is not None
        tar = ObjectInfo(batch.key, batch.size, sent.tar.etag, 0, sent.tar.version_id)
        head = batch.head(sent.tar.etag)
        self._union.add(Loaded(Pack(tar, None), Index(head, batch.entries)))
        await self._settle(pack_id, chosen)

    async def _settle(self, pack_id: str, writes: list[Write]) -> None:
        """S3 has the pack. What somebody else wrote meanwhile hides ours; then ours is to go elsewhere."""
        await self._keeper.freshen(0)
        plain = await self._present([write.key for write in writes if write.body is not None])
        for write in writes:
            member = self._union.find(write.key)
            if write.body is None:
                write.result = PutResult("")
            elif write.key in plain or member is None or member.order != pack_id:
                write.error = PreconditionFailedError("somebody wrote it meanwhile", key=write.key)
            else:
                write.result = PutResult(member.etag, None, date_of(pack_id))

    @staticmethod
    def _may(write: Write, member: Member | None, plain: ObjectInfo | None) -> bool:
        """Is it to be written? Notes why not."""
        wanted = write.condition
        if plain is not None and wanted == Condition():
            # A deletion buries what lies below the object.
            write.is_plain = True
            return write.body is None and member is not None
        there: ETag = plain.etag if plain is not None else member.etag if member is not None else ""
        expected = "" if wanted.if_absent else there if wanted.if_match is None else wanted.if_match
        if there != expected:
            write.error = PreconditionFailedError("another version is there", key=write.key)
            return False
        return write.body is not None or member is not None

    def _fill(self, batch: Batch, writes: list[Write]) -> None:
        for write in writes:
            name = write.key[len(self._prefix) :]
            if write.body is None:
                batch.add_tombstone(name.removesuffix("/"))
            else:
                batch.add(name, write.body, about(write.headers, self._clock.now_ns()))


def about(headers: ObjectHeaders, now_ns: int) -> About:
    """What a member is stored with where an object would have ``headers``."""
    metadata = dict(headers.metadata)
    mtime_ns = time_ns(metadata.get("mtime", ""))
    return About(
        now_ns if mtime_ns is None else mtime_ns,
        _number(metadata, "mode", 0o644) & 0o7777,
        _number(metadata, "uid", 0),
        _number(metadata, "gid", 0),
        metadata,
        headers.content_type or "",
    )


def _number(metadata: dict[str, str], name: str, default: int) -> int:
    text = metadata.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else default


def files_at_once(below: int) -> int:
    """So many writes of at most ``below`` bytes may be on their way: each is in memory."""
    return max(64, min(2000, math.ceil((64 << 20) / max(1, below))))
