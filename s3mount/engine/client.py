"""The parent's end: a Store whose work is done by a child process that may die at any time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec
import trio

from s3mount import metrics
from s3mount.config import StoreConfig
from s3mount.engine import messages
from s3mount.engine.dispatch import slice_to_wire, to_wire
from s3mount.engine.messages import Reply, error_of
from s3mount.engine.process import Spawn, spawn_engine
from s3mount.engine.supervisor import Call, EngineSupervisor
from s3mount.errors import (
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import (
    ANY,
    Body,
    BucketInfo,
    ByteRange,
    Capabilities,
    Condition,
    ContentRef,
    ETag,
    FileSlice,
    Key,
    ListPage,
    ObjectDigests,
    ObjectHeaders,
    ObjectInfo,
    PartInfo,
    PutResult,
    UploadInfo,
    VersionId,
    VersionPage,
)
from s3mount.s3.calls.ambiguous_writes import settle_complete, settle_copy, settle_put
from s3mount.s3.store import INLINE_BODY_BYTES_MAX

STOP_S = 10.0
"""How long ``async with`` waits at its end for calls under way."""

R = TypeVar("R", bound=Reply)


class EngineClient:
    """``s3.store.Store`` carried to the engine process.

    Either ``async with EngineClient(config) as store`` or ``nursery.start(client.run)`` and
    ``client.stop()``. Must run in a thread that lives as long as the client (trio's loop does).

    A child that dies is replaced and asked again; callers notice a delay. EngineError is raised
    when it keeps dying, and after ``stop``. If the store cannot be opened, each call raises why.
    """

    def __init__(self, config: StoreConfig, *, spawn: Spawn = spawn_engine) -> None:
        self._config = config
        self._supervisor = EngineSupervisor(config, spawn)
        self._ids = itertools.count(1)
        self._counted: dict[str, float] = {}
        self._counted_before: dict[str, float] = {}
        self._counted_deaths = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child alive until ``stop`` or cancellation. Once per client."""
        await self._supervisor.run(task_status=task_status)

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """Take no more calls, let those under way finish, and end the child; kill it after ``timeout_s``.

        Repeatable. Returns when the child is gone, cancelled or not.
        """
        await self._supervisor.stop(timeout_s)

    async def __aenter__(self) -> EngineClient:
        """Start the child; does not wait for it to be ready."""
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._supervisor.run)
        await trio.lowlevel.cancel_shielded_checkpoint()  # from here on __aexit__ must be reached
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; at once when the block ended with an exception.

        The nursery is told of no exception, so that the block's own leaves as it is, in no group.
        """
        try:
            await self.stop(0 if error is not None else STOP_S)
        finally:
            await self._manager.__aexit__(None, None, None)

    @property
    def restarts(self) -> int:
        """How often the child died unasked."""
        return self._supervisor.deaths

    @property
    def outage(self) -> str:
        """See ``Store.outage``."""
        return self._supervisor.outage

    @property
    def lists_in_order(self) -> bool:
        """See ``Store.lists_in_order``."""
        return not self._config.is_directory_bucket

    @property
    def on_outage(self) -> Callable[[str], None]:
        """See ``Store.on_outage``."""
        return self._supervisor.on_outage

    @on_outage.setter
    def on_outage(self, called: Callable[[str], None]) -> None:
        self._supervisor.on_outage = called

    async def _ask(self, call: Call, expected: type[R]) -> R:
        reply = await self._supervisor.ask(call)
        if not isinstance(reply, expected):
            raise ServerFaultError(f"the engine answered {type(reply).__name__}")
        return reply

    async def renew_credentials(self) -> None:
        """See ``Store.renew_credentials``."""
        await self._ask(Call(messages.RenewCredentials(next(self._ids))), messages.Done)

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``. Later children keep to them as well."""
        self._supervisor.config = msgspec.structs.replace(
            self._supervisor.config,
            up_bytes_per_s=up_bytes_per_s,
            down_bytes_per_s=down_bytes_per_s,
        )
        request = messages.SetRates(next(self._ids), up_bytes_per_s, down_bytes_per_s)
        await self._ask(Call(request), messages.Done)

    async def set_log_level(self, level: str) -> None:
        """See ``Store.set_log_level``. Later children begin with the level that this process has then."""
        await self._ask(Call(messages.SetLogLevel(next(self._ids), level)), messages.Done)

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        request = messages.Head(next(self._ids), key, version_id)
        return (await self._ask(Call(request), messages.Found)).info

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        request = messages.Get(next(self._ids), key, byte_range, version_id, if_match)
        reply = await self._ask(Call(request), messages.Got)
        return reply.info, reply.data

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        *,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """See ``Store.fetch``. When it returns, or raises Cancelled, nobody writes to the file."""
        request = messages.Fetch(
            next(self._ids),
            key,
            byte_range,
            slice_to_wire(sink),
            version_id,
            if_match,
            on_progress is not None,
        )
        call = Call(request, holds_file=True, on_progress=on_progress)
        info = (await self._ask(call, messages.Found)).info
        if on_progress is not None and call.progressed < byte_range.length:
            on_progress(byte_range.length)  # the child's last report is its reply
        return info

    async def digests(self, key: Key, *, version_id: VersionId | None = None) -> ObjectDigests:
        """See ``Store.digests``."""
        request = messages.Digests(next(self._ids), key, version_id)
        return (await self._ask(Call(request), messages.Kept)).digests

    async def describe(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.describe``."""
        request = messages.Describe(next(self._ids), key, version_id)
        return (await self._ask(Call(request), messages.Found)).info

    async def put_tags(self, key: Key, tags: str, *, version_id: VersionId | None = None) -> None:
        """See ``Store.put_tags``."""
        request = messages.PutTags(next(self._ids), key, tags, version_id)
        await self._ask(Call(request), messages.Done)

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.put``. A repetition after a child's death is told from somebody else's write."""
        _check_inline(key, body)
        request = messages.Put(next(self._ids), key, to_wire(body), headers, condition)
        call = Call(request, holds_file=isinstance(body, FileSlice))
        try:
            return (await self._ask(call, messages.Stored)).result
        except PreconditionFailedError as error:
            if not call.resends:
                raise
            return await settle_put(self.head, key, body, headers, error)

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.copy``. A repetition after a child's death is told from somebody else's write."""
        request = messages.Copy(next(self._ids), source, key, headers, condition)
        call = Call(request)
        try:
            return (await self._ask(call, messages.Stored)).result
        except PreconditionFailedError as error:
            if not call.resends:
                raise
            return await settle_copy(self.head, source, key, headers, error)

    async def rename(
        self, source: ContentRef, key: Key, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.rename``. A repetition after a child's death may find it done, as any other."""
        request = messages.Rename(next(self._ids), source, key, condition)
        return (await self._ask(Call(request), messages.Stored)).result

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """See ``Store.append``. A repetition after a child's death may find it done, as any other."""
        _check_inline(base.key, body)
        request = messages.Append(next(self._ids), base, to_wire(body))
        call = Call(request, holds_file=isinstance(body, FileSlice))
        return (await self._ask(call, messages.Stored)).result

    async def delete(
        self, key: Key, *, version_id: VersionId | None = None, if_match: ETag | None = None
    ) -> None:
        """See ``Store.delete``."""
        call = Call(messages.Delete(next(self._ids), key, version_id, if_match))
        try:
            await self._ask(call, messages.Done)
        except PreconditionFailedError:
            if not call.resends:
                raise
            # A child that died may have deleted it; what is there now is for the caller to judge.
            with contextlib.suppress(NoSuchKeyError):
                await self.head(key)
                raise

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        """See ``Store.delete_many``."""
        request = messages.DeleteMany(next(self._ids), tuple(keys), tuple(version_ids))
        reply = await self._ask(Call(request), messages.Deleted)
        return [None if record is None else _store_error(record) for record in reply.errors]

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        """See ``Store.list_page``."""
        request = messages.ListPageOf(
            next(self._ids), prefix, delimiter, token, start_after, max_keys
        )
        return (await self._ask(Call(request), messages.Page)).page

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """See ``Store.list_versions_page``."""
        request = messages.ListVersions(
            next(self._ids), prefix, delimiter, key_marker, version_marker, max_keys
        )
        return (await self._ask(Call(request), messages.Versions)).page

    async def create_multipart(
        self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False
    ) -> str:
        """See ``Store.create_multipart``. A repetition may leave an upload that nobody knows."""
        request = messages.CreateMultipart(next(self._ids), key, headers, has_copies)
        return (await self._ask(Call(request), messages.Begun)).upload_id

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """See ``Store.upload_part``."""
        _check_inline(key, body)
        request = messages.UploadPart(next(self._ids), key, upload_id, number, to_wire(body))
        call = Call(request, holds_file=isinstance(body, FileSlice))
        return (await self._ask(call, messages.Part)).part

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """See ``Store.upload_part_copy``."""
        request = messages.UploadPartCopy(
            next(self._ids), key, upload_id, number, source, byte_range
        )
        return (await self._ask(Call(request), messages.Part)).part

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.complete_multipart``. A repetition after a child's death that finds the upload
        gone or the key changed is told from somebody else's write."""
        request = messages.CompleteMultipart(
            next(self._ids), key, upload_id, tuple(parts), condition
        )
        call = Call(request)
        try:
            return (await self._ask(call, messages.Stored)).result
        except (PreconditionFailedError, NoSuchKeyError) as error:
            if not call.resends:
                raise
            return await settle_complete(self.head, key, parts, error)

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """See ``Store.abort_multipart``."""
        request = messages.AbortMultipart(next(self._ids), key, upload_id)
        await self._ask(Call(request), messages.Done)

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """See ``Store.list_parts``."""
        request = messages.ListParts(next(self._ids), key, upload_id)
        return (await self._ask(Call(request), messages.Parts)).parts

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """See ``Store.list_uploads``."""
        request = messages.ListUploads(next(self._ids), prefix)
        return (await self._ask(Call(request), messages.Uploads)).uploads

    async def may_write(self, temporary_key: Key) -> bool | None:
        """See ``Store.may_write``."""
        request = messages.MayWrite(next(self._ids), temporary_key)
        return (await self._ask(Call(request), messages.Answered)).is_so

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        """See ``Store.check_bucket``."""
        request = messages.CheckBucket(next(self._ids), prefix)
        return (await self._ask(Call(request), messages.Bucket)).info

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``."""
        request = messages.NoncurrentRule(next(self._ids), prefix)
        return (await self._ask(Call(request), messages.Told)).text

    async def probe(
        self, temporary_key: Key, *, known: Capabilities | None = None, killed: Key = ""
    ) -> Capabilities:
        """See ``Store.probe``. Later children are told what was found."""
        request = messages.Probe(next(self._ids), temporary_key, known, killed)
        found = (await self._ask(Call(request), messages.Able)).capabilities
        self._supervisor.greeting = messages.Probe(next(self._ids), temporary_key, found)
        return found

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``."""
        request = messages.TryVersionDates(next(self._ids), temporary_key)
        return (await self._ask(Call(request), messages.Answered)).is_so

    async def statistics(self) -> dict[str, float]:
        """See ``Store.statistics``, over all children, and ``engine_restarts``.

        What a child counted since it was last asked dies with it.
        """
        request = messages.Statistics(next(self._ids))
        values = (await self._ask(Call(request), messages.Counted)).values
        if self._supervisor.deaths != self._counted_deaths:
            self._counted_deaths = self._supervisor.deaths
            self._counted_before = _sum_up(self._counted_before, self._counted)
        self._counted = values
        return _sum_up(self._counted_before, values) | {"engine_restarts": self._supervisor.deaths}


def _sum_up(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Counters of one child after the other: sums, greatest values, and what is so just now."""
    total = dict(now)
    for name, value in before.items():
        if name.endswith("_max_s"):
            total[name] = max(value, now.get(name, value))
        elif metrics.find(name).kind == "counter":
            total[name] = value + now.get(name, 0.0)
    return total


def _check_inline(key: Key, body: Body) -> None:
    if not isinstance(body, FileSlice) and len(body) > INLINE_BODY_BYTES_MAX:
        raise RejectedError(f"a body of {len(body)} bytes must come as a file", key=key)


def _store_error(record: messages.ErrorRecord) -> StoreError:
    error = error_of(record)
    return error if isinstance(error, StoreError) else ServerFaultError(str(error))
