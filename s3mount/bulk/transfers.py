"""One object or file to another place: up, down, from bucket to bucket, and from a stream."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import trio

from s3mount.bulk.location import LocalPath, S3Location
from s3mount.bulk.ranged import Ranged, RangedSource, partial_filler
from s3mount.bulk.reading import Piece, pieces_of, read_in_order
from s3mount.bulk.report import Report
from s3mount.bulk.running import Done, Session
from s3mount.bulk.selecting import Item, streamed
from s3mount.bulk.sources import READ_BYTES, Read, StoreSource, upload_stream
from s3mount.checkout.paths import permissions
from s3mount.config import MIB, StoreConfig
from s3mount.errors import (
    CustomerKeyError,
    DestinationError,
    FileExistsHereError,
    NoSuchKeyError,
    ObjectExistsError,
    PreconditionFailedError,
    SourceError,
)
from s3mount.flow.parts import PartPlan
from s3mount.refs import (
    ANY,
    Attributes,
    Condition,
    ContentRef,
    Key,
    ObjectHeaders,
    ObjectInfo,
    PutResult,
)
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.download import download_file, new_file
from s3mount.transfer.fetching import RANGE_BYTES, Fetching, Wanted
from s3mount.transfer.ledger import Ledger
from s3mount.transfer.partial import Partial
from s3mount.transfer.source import FileSource, Source, SourceChangedError
from s3mount.transfer.tags import restore_tags
from s3mount.transfer.upload import GO_ON, Resume, upload
from s3mount.tree import attributes

log = logging.getLogger(__name__)

PART_BYTES = 8 * MIB
SOURCE_SLOTS = 16
"""Ranges of URLs under way at once, while they go to S3."""
THERE = "it is there already"
Exists: TypeAlias = Literal["overwrite", "skip", "fail"]

_OF_PLACE = ("encryption", "kms_key_id", "bucket_key", "acl")
_NOT_CARRIED = (*_OF_PLACE, "lock_mode", "lock_until", "legal_hold")
"""What an object has by the bucket that it lies in, and gets anew in another one."""


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What a command was told about each object.

    ``headers`` are those that it names, beside what ``StoreConfig.new_objects`` has. ``exists`` is for objects,
    ``file_exists`` for files. ``ledgers`` is the folder where uploads under way are noted. With
    ``deletes_source`` a source is deleted when it has arrived. ``names_version``: the source is a version that was
    asked for by its id. ``source_slots`` bounds the ranges of URLs under way.
    """

    ledgers: Path
    headers: ObjectHeaders = ObjectHeaders()
    plan: PartPlan = PartPlan(PART_BYTES)
    resume: Resume = GO_ON
    resumes_downloads: bool = True
    exists: Exists = "overwrite"
    file_exists: Exists = "overwrite"
    keeps_attributes: bool = True
    deletes_source: bool = False
    names_version: bool = False
    source_slots: int = SOURCE_SLOTS


class Transfers:
    """Moves single objects, for one command. ``source_config`` says how the sources in S3 are asked."""

    def __init__(
        self,
        session: Session,
        report: Report,
        config: StoreConfig,
        how: How,
        *,
        source_config: StoreConfig | None = None,
    ) -> None:
        self._session = session
        self._report = report
        self._source_config = source_config or config
        of_source = self._source_config.customer_key
        self._is_rekeyed = of_source != config.customer_key
        if self._is_rekeyed:
            config = msgspec.structs.replace(config, copy_source_key=of_source)
        self._config = config
        self._how = how
        self._fetching = Fetching(report.moved, slots=session.slots)
        self._source_slots = trio.CapacityLimiter(how.source_slots)
        self._folders: set[str] = set()

    async def source_store(self, bucket: str) -> Store:
        """The store that objects are read from."""
        return await self._session.store(self._source_config, bucket)

    # ------------------------------------------------------------- from URLs

    async def from_url(self, url: str, to: S3Location | LocalPath) -> Done:
        """What a URL has, to an object or a file. Raises SourceError, and as the others here."""
        # Slow to import, and few need them.
        from s3mount.bulk import ftp, urls

        if url.lower().startswith("ftp:"):
            return await self._from_either(ftp.FtpSource(url), ftp.streamed_ftp(url), url, to)
        async with urls.http_client() as client:
            source = urls.HttpSource(client, url)
            return await self._from_either(source, urls.streamed_url(client, url), url, to)

    async def _from_either(
        self,
        remote: RangedSource,
        stream: AbstractAsyncContextManager[Read],
        url: str,
        to: S3Location | LocalPath,
    ) -> Done:
        """From ``remote`` where it gives ranges, else from ``stream``."""
        if await remote.look():
            if isinstance(to, S3Location):
                source = Ranged(remote, self._source_slots)
                return await self._sent(source, to, self._headers_of(to.key, None))
            return await self.down_ranged(remote, url, to.path)
        async with stream as read:
            if isinstance(to, S3Location):
                return await self.up_from(read, to)
            return await self.down_from(read, to.path)

    # -------------------------------------------------------------------- up

    async def up(self, path: str, to: S3Location) -> Done:
        """A local file to an object. Raises SourceError, ObjectExistsError and what ``upload`` raises."""
        try:
            found = os.stat(path)
        except OSError as error:
            raise SourceError(str(error.strerror)) from error
        if not stat.S_ISREG(found.st_mode):
            is_folder = stat.S_ISDIR(found.st_mode)
            what = "it is a folder, which needs -r" if is_folder else "it is no regular file"
            raise SourceError(what)
        source = FileSource(path, found.st_size)
        before = await source.state()
        done = await self._sent(source, to, self._headers_of(to.key, found))
        if self._how.deletes_source and done.skipped is None:
            if await source.state() != before:
                raise SourceError("it was changed after it was sent, and stays")
            try:
                os.unlink(path)
            except OSError as error:
                raise SourceError(f"it is sent and cannot be removed: {error.strerror}") from error
        return done

    async def up_from(self, read: Read, to: S3Location) -> Done:
        """What ``read(n)`` gives until it ends, to an object; never gone on with. Raises as ``upload_stream``."""
        store = await self._session.store(self._config, to.bucket)
        if why := await self._is_taken(store, to.key):
            return Done(skipped=why)
        try:
            result, size = await upload_stream(
                store,
                read,
                to.key,
                self._headers_of(to.key, None),
                plan=self._how.plan,
                slots=self._session.slots,
                condition=self._condition,
                on_sent=self._report.moved,
            )
        except PreconditionFailedError as error:
            return self._taken(error)
        return Done(size, result.version_id)

    async def _sent(self, source: Source, to: S3Location, headers: ObjectHeaders) -> Done:
        how = self._how
        store = await self._session.store(self._config, to.bucket)
        if why := await self._is_taken(store, to.key):
            return Done(skipped=why)
        with contextlib.ExitStack() as stack:
            ledger = None
            if source.size > how.plan.part_bytes:
                identity = f"{self._config.endpoint_url or 'aws'} {to.bucket}"
                ledger = stack.enter_context(Ledger(how.ledgers, identity, to.key))
            try:
                result = await upload(
                    store,
                    source,
                    to.key,
                    headers,
                    plan=how.plan,
                    slots=self._session.slots,
                    condition=self._condition,
                    ledger=ledger,
                    resume=how.resume,
                    on_sent=self._report.moved,
                )
            except PreconditionFailedError as error:
                return self._taken(error)
        if ledger is not None:
            await restore_tags(store, to.key, headers.tags, result.version_id)
        return Done(source.size, result.version_id, etag=result.etag)

    def _headers_of(self, key: Key, found: os.stat_result | None) -> ObjectHeaders:
        """What goes with a new object: what was given, the type by its name, and what the file was."""
        given = self._how.headers
        content_type = attributes.content_type_of(key)
        if found is None or not self._how.keeps_attributes:
            return msgspec.structs.replace(given, content_type=given.content_type or content_type)
        of_file = Attributes(
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
            found.st_ctime_ns,
            # Reading it to send it would change its own.
            found.st_mtime_ns,
        )
        return attributes.encode(of_file, given, content_type=content_type)

    # ------------------------------------------------- what is there already

    @property
    def _condition(self) -> Condition:
        return ANY if self._how.exists == "overwrite" else Condition(if_absent=True)

    async def _is_taken(self, store: Store, key: Key) -> str:
        """Why nothing is to be sent; empty where it is. Raises ObjectExistsError."""
        if self._how.exists == "overwrite":
            return ""
        try:
            await store.head(key)
        except NoSuchKeyError:
            return ""
        return self._taken(None).skipped or ""

    def _taken(self, error: PreconditionFailedError | None) -> Done:
        if self._how.exists == "skip":
            return Done(skipped=THERE)
        if self._how.exists == "overwrite" and error is not None:
            raise error
        raise ObjectExistsError(
            "there is an object of this name: --exists overwrite or skip"
        ) from error

    # ------------------------------------------------------------------ down

    async def down(self, item: Item, bucket: str, path: str) -> Done:
        """An object to a local file; one whose key ends with a slash to a folder.

        Raises FileExistsHereError, DestinationError and what ``download_file`` raises.
        """
        how = self._how
        store = await self.source_store(bucket)
        if item.key.endswith("/"):
            return await self._down_marker(store, item, path)
        if self._has_file(path):
            return self._file_taken(None)
        self._make_folder(os.path.dirname(path))
        wanted = Wanted(item.key, item.etag, item.size, item.version_id)
        try:
            arrived = await download_file(
                self._fetching,
                store,
                wanted,
                path,
                attributes=self._attributes if how.keeps_attributes else _as_new,
                replace=how.file_exists == "overwrite",
                resume=how.resumes_downloads,
            )
        except FileExistsError as error:
            return self._file_taken(error)
        info = arrived.info
        await self._remove(store, item.version_id or info.version_id, info.etag, item.key)
        return Done(info.size, info.version_id, etag=info.etag)

    async def _down_marker(self, store: Store, item: Item, path: str) -> Done:
        """An object that stands for a folder; one with bytes of its own cannot be had on a disk."""
        info = await store.head(item.key, version_id=item.version_id)
        if info.size:
            raise DestinationError(f"a folder cannot hold the {info.size} bytes of this key")
        self._make_folder(path)
        await self._remove(store, info.version_id, info.etag, item.key)
        return Done(version_id=info.version_id)

    async def down_to(
        self, item: Item, bucket: str, write: Callable[[memoryview], Awaitable[None]]
    ) -> Done:
        """An object to a stream, in order. Raises the store's errors, and what ``write`` raises."""
        store = await self.source_store(bucket)

        async def produce(send: Callable[[Piece], Awaitable[None]]) -> None:
            for piece in pieces_of(store, item.ref):
                await send(piece)

        async def consume(piece: Piece, data: memoryview) -> None:
            await write(data)
            self._report.moved(len(data))

        async with streamed(produce) as pieces:
            await read_in_order(pieces, consume)
        return Done(item.size or 0, item.version_id)

    async def down_ranged(self, remote: RangedSource, url: str, path: str) -> Done:
        """A file of another server to a local one, gone on with as an object. Raises SourceError, LocalDiskError."""
        if self._has_file(path):
            return self._file_taken(None)
        self._make_folder(os.path.dirname(path))
        before = await remote.state()
        resume = self._how.resumes_downloads and bool(remote.validator)
        wanted = Wanted(url, remote.validator, remote.size)
        partial = Partial(path, wanted, RANGE_BYTES, resume=resume)
        try:
            await partial.look()
            fill = partial_filler(remote, partial.file, self._report.moved)
            await in_parallel(self._session.slots, partial.missing, fill)
            if await remote.state() != before:
                raise SourceChangedError("the file at the URL was replaced")
            partial.place(None, None, replace=self._how.file_exists == "overwrite")
        except FileExistsError as error:
            return self._file_taken(error)
        except SourceChangedError:
            partial.discard()
            raise
        finally:
            partial.close()
        return Done(remote.size)

    async def down_from(self, read: Read, path: str) -> Done:
        """What ``read`` gives until it ends to a file; begun anew each time. Raises as ``down_ranged``."""
        if self._has_file(path):
            return self._file_taken(None)
        self._make_folder(os.path.dirname(path))
        try:
            with new_file(path, replace=self._how.file_exists == "overwrite") as file:
                while data := await read(READ_BYTES):
                    file.write(data)
                    self._report.moved(len(data))
                size = file.tell()
        except FileExistsError as error:
            return self._file_taken(error)
        return Done(size)

    def _has_file(self, path: str) -> bool:
        return self._how.file_exists != "overwrite" and os.path.lexists(path)

    def _file_taken(self, error: FileExistsError | None) -> Done:
        if self._how.file_exists == "skip":
            return Done(skipped=THERE)
        raise FileExistsHereError(
            "there is a file of this name: --file-exists overwrite or skip"
        ) from error

    def _make_folder(self, path: str) -> None:
        if not path or path in self._folders:
            return
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            is_file = isinstance(error, (FileExistsError, NotADirectoryError))
            why = "a file is in the way" if is_file else error.strerror
            raise DestinationError(f"{path}: {why}") from error
        self._folders.add(path)

    def _attributes(self, info: ObjectInfo) -> tuple[int | None, int | None]:
        mode, mtime_ns = None, None
        if info.headers is not None:
            mode, mtime_ns = attributes.mode_and_mtime(info.headers)
        return permissions(mode), mtime_ns or info.last_modified_ns or None

    # ---------------------------------------------------------------- across

    async def across(self, item: Item, bucket: str, to: S3Location) -> Done:
        """An object to another key: copied by S3 where both lie in one store, else through here.

        What is stored with it goes along, but for what belongs to its bucket (encryption, ACL, locks).
        """
        source = await self.source_store(bucket)
        info = await source.describe(item.key, version_id=item.version_id)
        if item.etag and info.etag != item.etag:
            raise PreconditionFailedError("it was replaced since it was listed", key=item.key)
        is_one_bucket = bucket == to.bucket and self._is_one_store
        headers = self._carried(info, is_one_bucket=is_one_bucket)
        # The destination's store has another key, by which it could not look at the source.
        named = "" if is_one_bucket and not self._is_rekeyed else bucket
        if is_one_bucket and item.key == to.key and not (self._how.names_version or self._changes):
            raise DestinationError("source and destination are the same object")
        version_id = item.version_id or info.version_id
        done = None
        if self._is_one_store:
            ref = ContentRef(item.key, info.etag, info.size, version_id, named)
            done = await self._copied(ref, to, headers)
        if done is None:
            wanted = Wanted(item.key, info.etag, info.size, version_id)
            done = await self._sent(StoreSource(source, wanted, info.size), to, headers)
        if done.skipped is None:
            await self._remove(source, version_id, info.etag, item.key)
        return done

    async def _copied(self, ref: ContentRef, to: S3Location, headers: ObjectHeaders) -> Done | None:
        """Copied by S3. ``None`` where the store does not by the source's own key, which Ceph 16 does not."""
        store = await self._session.store(self._config, to.bucket)
        if why := await self._is_taken(store, to.key):
            return Done(skipped=why)
        try:
            async with self._session.slots:
                result: PutResult = await store.copy(
                    ref, to.key, headers, condition=self._condition
                )
        except CustomerKeyError as error:
            # The key is the right one: its source was looked at with it.
            log.info("%r is copied through here: %s", ref.key, error)
            return None
        except PreconditionFailedError as error:
            if self._how.exists == "overwrite":
                raise
            return self._taken(error)
        self._report.moved(ref.size)
        await restore_tags(store, to.key, headers.tags, result.version_id)
        return Done(ref.size, result.version_id)

    @property
    def _is_one_store(self) -> bool:
        mine, theirs = (
            msgspec.structs.replace(
                each, new_objects=ObjectHeaders(), customer_key=None, copy_source_key=None
            )
            for each in (self._config, self._source_config)
        )
        return mine == theirs

    @property
    def _changes(self) -> bool:
        nothing = ObjectHeaders()
        told = (self._how.headers, self._config.new_objects)
        return self._is_rekeyed or told != (nothing, nothing)

    def _carried(self, info: ObjectInfo, *, is_one_bucket: bool) -> ObjectHeaders:
        """What a copy has beside its bytes: what its source has, and what was given in place of it."""
        given, new = self._how.headers, self._config.new_objects
        found = info.headers or ObjectHeaders()
        changed: dict[str, object] = {}
        if not is_one_bucket:
            changed |= dict.fromkeys(_NOT_CARRIED)
        if new.encryption:
            changed |= dict.fromkeys(("encryption", "kms_key_id", "bucket_key"))
        if new.acl:
            changed["acl"] = None
        for name in ObjectHeaders.__struct_fields__:
            if name != "metadata" and (value := getattr(given, name)) is not None:
                changed[name] = value
        changed["metadata"] = dict(found.metadata) | dict(given.metadata)
        return msgspec.structs.replace(found, **changed)

    # ---------------------------------------------------------------- moving

    async def _remove(self, store: Store, version_id: str | None, etag: str, key: Key) -> None:
        """After a move: delete what was moved, and nothing that was put in its place meanwhile.

        A version that was asked for by its id goes for good; else a bucket that keeps versions keeps this one.
        """
        if not self._how.deletes_source:
            return
        if self._how.names_version:
            await store.delete(key, version_id=version_id)
            return
        now = await store.head(key)
        if (now.etag, now.version_id) != (etag, version_id):
            raise PreconditionFailedError(
                "it was replaced after it was moved, so both stay", key=key
            )
        await store.delete(key, if_match=etag)


def _as_new(info: ObjectInfo) -> tuple[int | None, int | None]:
    return None, None
