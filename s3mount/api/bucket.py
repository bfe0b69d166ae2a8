"""A bucket, or what lies below a prefix of it, for trio programs."""

from __future__ import annotations

import io
import os
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import trio

from s3mount.api.files import ObjectFile
from s3mount.api.listing import Listing
from s3mount.api.outcomes import Progress, Summary, collected
from s3mount.api.requests import RequestReport, Requests, TimeoutPolicy
from s3mount.bulk.copying import Chosen, Copying
from s3mount.bulk.deleting import Deleter
from s3mount.bulk.location import LocalPath, S3Location, parse_s3
from s3mount.bulk.report import Report
from s3mount.bulk.running import Done, OneByOne, Performer, Session, Task, for_each, open_session
from s3mount.bulk.selecting import ALL_NAMES, Item, Send, objects
from s3mount.bulk.sources import Read, from_file
from s3mount.bulk.transfers import PART_BYTES, Exists, How, Transfers
from s3mount.config import StoreConfig, default_state_dir
from s3mount.errors import S3MountError, UsageError
from s3mount.flow.parts import PartPlan
from s3mount.patterns import PathFilter
from s3mount.refs import ANY, Condition, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.s3.client import S3Store
from s3mount.s3.http.perf_log import Recorder
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store

T = TypeVar("T")
PathLike: TypeAlias = "str | os.PathLike[str]"
NO_HEADERS = ObjectHeaders()


class Closing(Protocol):
    """What holds something that S3 has not got."""

    async def close(self) -> None:
        """Return when S3 has it."""
        ...

    def abandon(self) -> None:
        """Give up what S3 has not got. Repeatable."""
        ...


class Upload(NamedTuple):
    """What ``Bucket.upload`` sends under a key of its own: a path, bytes, or chunks of bytes as they come.

    ``headers`` are this object's; what they leave open comes from those of the call.
    """

    source: PathLike | bytes | AsyncIterable[bytes]
    key: Key
    headers: ObjectHeaders = NO_HEADERS


@asynccontextmanager
async def open_bucket(
    url: str,
    *,
    on_request: Recorder | None = None,
    policy: TimeoutPolicy | None = None,
    **settings: Any,
) -> AsyncIterator[Bucket]:
    """``async with open_bucket("s3://BUCKET/PREFIX") as bucket``: connections stay warm within the block.

    ``settings`` are those of ``StoreConfig``: ``endpoint_url``, ``region``, ``profile``, ``path_style``,
    ``timeouts`` (a ``TimeoutSettings``), ``customer_key`` (a ``CustomerKey``)... Credentials are boto3's.
    ``on_request`` is told of each request when it has ended (a ``RequestRecord``). ``policy`` decides the deadlines
    of ``Bucket.request``.

    Raises LocationError, UsageError and what keeps the store from being opened (NoCredentialsError,
    EncryptionKeyError, WrongRegionError, NetworkError).
    """
    location = parse_s3(url, raw=True)
    try:
        config = StoreConfig(bucket=location.bucket, **settings)
    except TypeError as error:
        raise UsageError(f"a setting that there is not: {error}") from None
    prefix = location.key if location.is_folder else f"{location.key}/"
    failure: Exception | None = None
    bucket: Bucket | None = None
    try:
        async with (
            trio.open_nursery() as nursery,
            open_session(partial(S3Store, recorder=on_request)) as session,
        ):
            try:
                store = await session.store(config, location.bucket)
                bucket = Bucket(nursery, session, store, config, prefix, policy)
                yield bucket
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
                failure = error
            for writer in bucket.writers if bucket is not None else ():
                try:
                    await writer.close()
                except S3MountError as error:
                    # What the program raised comes first.
                    failure = failure or error
            nursery.cancel_scope.cancel()
    finally:
        for writer in bucket.writers if bucket is not None else ():
            writer.abandon()
    if failure is not None:
        raise failure


class Bucket:
    """What lies below ``prefix``; keys are named from there on. Made by ``open_bucket``.

    Every coroutine may be cancelled: nothing half is left under a final name. What concerns many objects tells
    ``progress`` of each (an ``Outcome``; a coroutine function is awaited), goes on when one fails, and raises
    ``SomeFailedError`` at the end.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        session: Session,
        store: Store,
        config: StoreConfig,
        prefix: Key,
        policy: TimeoutPolicy | None = None,
    ) -> None:
        self.nursery = nursery
        self.store = store
        self.prefix = prefix
        self._session = session
        self._config = config
        self._requests = Requests(config.timeouts, policy)
        self.writers: list[Closing] = []
        """Closed when the block of ``open_bucket`` ends, but for a cancellation."""

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._config.bucket

    def at(self, key: Key) -> S3Location:
        """Where a key below the prefix lies."""
        return S3Location(self.name, self.prefix + key)

    def folder_at(self, place: str) -> S3Location:
        """The folder that ``place`` means: a prefix here, or an ``s3://`` URL. Raises LocationError."""
        location = parse_s3(place, raw=True) if place.startswith("s3://") else self.at(place)
        return location if location.is_folder else S3Location(location.bucket, f"{location.key}/")

    def transfers(self, report: Report, **how: Any) -> Transfers:
        """What moves single objects, told as the fields of ``How`` say."""
        ledgers = default_state_dir() / "transfers"
        return Transfers(self._session, report, self._config, How(ledgers=ledgers, **how))

    # ---------------------------------------------------------------- one object

    async def head(self, key: Key, *, version_id: str | None = None) -> ObjectInfo:
        """What HEAD tells of an object. Raises NoSuchKeyError and the other StoreErrors."""
        return await self.store.head(self.prefix + key, version_id=version_id)

    async def open(self, key: Key, *, version_id: str | None = None) -> ObjectFile:
        """An object as a file to read: one version from the first byte to the last. Raises as ``head``."""
        return ObjectFile(self.store, await self.head(key, version_id=version_id))

    async def get(self, key: Key, *, version_id: str | None = None) -> bytes:
        """All of an object, checked; a large one in parallel ranges. Raises as ``head``."""
        return await (await self.open(key, version_id=version_id)).read()

    async def put(
        self,
        key: Key,
        data: bytes,
        headers: ObjectHeaders = NO_HEADERS,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """Make an object of up to 1 MiB. Raises PreconditionFailedError where ``condition`` does not hold."""
        if len(data) > INLINE_BODY_BYTES_MAX:
            raise UsageError(f"{len(data)} bytes: upload() sends more than {INLINE_BODY_BYTES_MAX}")
        return await self.store.put(self.prefix + key, data, headers, condition=condition)

    async def copy_as(self, key: Key, to: str) -> None:
        """Copy an object, inside S3, to exactly the key ``to`` here, or an ``s3://`` URL. Raises as ``head``."""
        location = parse_s3(to, raw=True) if to.startswith("s3://") else self.at(to)
        place = self.at(key)
        async with collected("copy") as report:
            item = Item(place.url, key, key=place.key)
            await self.transfers(report).across(item, self.name, location)

    # ------------------------------------------------------------- many objects

    def list(
        self,
        prefix: str = "",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        versions: bool = False,
        folders: bool = False,
    ) -> Listing:
        """The objects whose keys begin with ``prefix`` and that the patterns leave, in the order of their keys.

        Listed in parallel, in bounded memory, as they are asked for; S3 Express lists in no order. ``versions``:
        all versions and delete markers. ``folders``: only what lies directly below, with folders as items.
        """
        takes = PathFilter(include, exclude) if include or exclude else ALL_NAMES
        location = self.at(prefix)
        if not location.is_folder:
            location = _Beginning(self.name, location.key)
        return Listing(self, partial(self._produce, location, takes, versions, folders))

    async def _produce(
        self,
        location: S3Location,
        takes: PathFilter,
        versions: bool,
        folders: bool,
        send: Send,
    ) -> None:
        delimiter = "/" if folders else None
        await objects(
            self.store, location, send, takes=takes, with_versions=versions, delimiter=delimiter
        )

    async def upload(
        self,
        sources: Iterable[PathLike | Upload],
        *,
        into: str = "",
        headers: ObjectHeaders = NO_HEADERS,
        progress: Progress | None = None,
        exists: Exists = "overwrite",
        part_bytes: int = PART_BYTES,
    ) -> Summary:
        """Send files, folders, bytes and streams; a file that was cut off is gone on with.

        A path keeps its name below ``into``, a folder with all that is in it; an ``Upload`` gets its key, below the
        bucket's prefix. ``exists``: ``overwrite``, ``skip`` or ``fail`` where an object is there.
        """
        folder = self.folder_at(into)
        async with collected("upload", progress) as report:

            async def one(source: PathLike | Upload) -> None:
                how: dict[str, Any] = {"exists": exists, "plan": PartPlan(part_bytes)}
                if isinstance(source, Upload):
                    joined = _joined(headers, source.headers)
                    transfers = self.transfers(report, headers=joined, **how)
                    await self._upload_one(transfers, report, source)
                    return
                transfers = self.transfers(report, headers=headers, **how)
                copying = Copying("upload", transfers, report, folder, Chosen(recursive=True))
                await copying.run([LocalPath(os.fspath(source))])

            await for_each(OneByOne(sources), one)
        return report.summary

    async def _upload_one(self, transfers: Transfers, report: Report, upload: Upload) -> None:
        body, to = upload.source, self.at(upload.key)

        async def work() -> Done:
            if isinstance(body, bytes):
                return await transfers.up_from(from_file(io.BytesIO(body)), to)
            if isinstance(body, str | os.PathLike):
                return await transfers.up(os.fspath(body), to)
            return await transfers.up_from(_reader_of(body), to)

        report.expect(1, len(body) if isinstance(body, bytes) else 0)
        told = os.fspath(body) if isinstance(body, str | os.PathLike) else "-"
        await Performer(report).perform(Task("upload", told, to.url, work, store=self.store))

    async def download(
        self,
        keys: Iterable[Key],
        folder: PathLike,
        *,
        progress: Progress | None = None,
        exists: Exists = "overwrite",
    ) -> Summary:
        """Fetch objects into ``folder``, each under the last part of its key; a key that ends with a slash means
        all that lies below it. What was cut off is gone on with.
        """
        return await self._copying(
            "download", keys, LocalPath(f"{os.fspath(folder)}/"), progress, file_exists=exists
        )

    async def copy(
        self,
        keys: Iterable[Key],
        to: str,
        *,
        progress: Progress | None = None,
        exists: Exists = "overwrite",
    ) -> Summary:
        """Copy objects, inside S3, below ``to``: a prefix here, or an ``s3://`` URL. Keys as for ``download``."""
        return await self._copying("copy", keys, self.folder_at(to), progress, exists=exists)

    async def move(
        self,
        keys: Iterable[Key],
        to: str,
        *,
        progress: Progress | None = None,
        exists: Exists = "overwrite",
    ) -> Summary:
        """As ``copy``; then each is deleted, if it is still the version that was copied."""
        return await self._copying(
            "move", keys, self.folder_at(to), progress, exists=exists, deletes_source=True
        )

    async def _copying(
        self,
        operation: str,
        keys: Iterable[Key],
        to: S3Location | LocalPath,
        progress: Progress | None,
        **how: Any,
    ) -> Summary:
        async with collected(operation, progress) as report:
            transfers = self.transfers(report, **how)

            async def one(key: Key) -> None:
                await Copying(operation, transfers, report, to, Chosen()).run([self.at(key)])

            await for_each(OneByOne(keys), one)
        return report.summary

    async def delete(self, keys: Iterable[Key], *, progress: Progress | None = None) -> Summary:
        """Delete objects, 1,000 in a request; one that is not there is no error."""
        async with collected("delete", progress) as report:
            located = map(self.at, keys)
            items = (Item(place.url, place.key, key=place.key) for place in located)
            await Deleter(self.store, report, "delete").run(OneByOne([item] for item in items))
        return report.summary

    async def request(
        self, send: Callable[[], Awaitable[T]], units: int = 0, *, kind: str = "request"
    ) -> tuple[RequestReport, T]:
        """A request of the program's own under adaptive deadlines: see ``Requests.request``."""
        return await self._requests.request(send, units, kind=kind)


class _Beginning(S3Location):
    """All keys that begin so, whatever characters are in it."""

    __slots__ = ()

    def matches(self, key: Key) -> bool:
        """See ``S3Location.matches``."""
        return key.startswith(self.key)


def _reader_of(chunks: AsyncIterable[bytes]) -> Read:
    """``read(n)`` of what comes in chunks."""
    source = aiter(chunks)
    rest = b""

    async def read(most: int) -> bytes:
        nonlocal rest
        while not rest:
            try:
                rest = await anext(source)
            except StopAsyncIteration:
                return b""
        given, rest = rest[:most], rest[most:]
        return given

    return read


def _joined(of_call: ObjectHeaders, own: ObjectHeaders) -> ObjectHeaders:
    """What the call's headers say, where the object's own say nothing."""
    told = {
        name: value
        for name in ObjectHeaders.__struct_fields__
        if name != "metadata" and (value := getattr(own, name)) is not None
    }
    return msgspec.structs.replace(of_call, metadata={**of_call.metadata, **own.metadata}, **told)
