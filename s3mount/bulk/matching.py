"""Two streams of items side by side, by their names; and whether two items hold the same bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Sequence
from itertools import islice
from typing import NamedTuple

import trio

from s3mount.bulk.digesting import digest_of_file, digest_of_object
from s3mount.bulk.location import LocalPath, Location, S3Location
from s3mount.bulk.running import Flattened, Session
from s3mount.bulk.selecting import (
    Item,
    Refuse,
    Send,
    local_files,
    objects,
    one_object,
    walk,
)
from s3mount.config import StoreConfig
from s3mount.errors import InternalError, LocalDiskError, SourceError, UsageError
from s3mount.manifest.external_sort import Runs
from s3mount.manifest.spill_file import Spill
from s3mount.patterns import PathFilter
from s3mount.refs import ObjectDigests
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.transfer.proving import hash_file

BATCH_ITEMS = 1000
READ_ALGORITHM = "sha256"
"""By which bytes are compared that had to be read."""


def _by_name(item: Item) -> tuple[str]:
    return (item.name,)


class Pair(NamedTuple):
    """What two places have of one name; one of them may have nothing."""

    left: Item | None
    right: Item | None


class Pairs:
    """Merges two streams of batches, both in the order of names, without holding more than a batch of each."""

    def __init__(
        self, left: AsyncIterable[Sequence[Item]], right: AsyncIterable[Sequence[Item]]
    ) -> None:
        self._sides = (Flattened(left), Flattened(right))
        self._heads: list[Item | None] = [None, None]
        self._names = ["", ""]
        self._over = [False, False]

    def __aiter__(self) -> Pairs:
        return self

    async def __anext__(self) -> Pair:
        for side in (0, 1):
            await self._fill(side)
        left, right = self._heads
        if left is None and right is None:
            raise StopAsyncIteration
        if right is None or (left is not None and left.name < right.name):
            self._heads[0] = None
            return Pair(left, None)
        if left is None or right.name < left.name:
            self._heads[1] = None
            return Pair(None, right)
        self._heads = [None, None]
        return Pair(left, right)

    async def _fill(self, side: int) -> None:
        if self._heads[side] is not None or self._over[side]:
            return
        try:
            head = await self._sides[side].__anext__()
        except StopAsyncIteration:
            self._over[side] = True
            return
        if head.name < self._names[side]:
            raise InternalError(
                f"a list is not in order: {head.name!r} after {self._names[side]!r}"
            )
        self._heads[side], self._names[side] = head, head.name


class Side(NamedTuple):
    """One of two places that are held against each other. ``store`` is ``None`` for the local disk."""

    place: S3Location | LocalPath
    store: Store | None

    @classmethod
    async def of(cls, session: Session, config: StoreConfig, place: Location) -> Side:
        """The side that a place is. Raises UsageError for streams and URLs."""
        if isinstance(place, S3Location):
            return cls(place, await session.store(config, place.bucket))
        await trio.lowlevel.checkpoint()
        if not isinstance(place, LocalPath):
            raise UsageError(f"{place.url}: only s3:// and local paths can be compared")
        return cls(place, None)

    @property
    def is_folder(self) -> bool:
        """Does it name many?"""
        if isinstance(self.place, LocalPath):
            return os.path.isdir(self.place.path)
        return self.place.is_folder or self.place.is_pattern

    def as_folder(self) -> Side:
        """The same as a folder, whether or not a slash says so."""
        place = self.place
        if isinstance(place, S3Location) and not self.is_folder:
            return self._replace(place=place._replace(key=f"{place.key}/"))
        return self

    def url_of(self, name: str) -> str:
        """Where ``name`` would lie."""
        if isinstance(self.place, LocalPath):
            return os.path.join(self.place.path, name)
        return self.place._replace(key=self.place.base).at(name).url

    async def items(self, takes: PathFilter, refuse: Refuse, send: Send) -> None:
        """What lies in it, in the order of names; what S3 Express lists in none is sorted, on the disk if much."""
        if isinstance(self.place, LocalPath):
            await local_files(walk(self.place.path, refuse, takes=takes), send)
            return
        assert self.store is not None
        if self.store.lists_in_order:
            await objects(self.store, self.place, send, takes=takes)
            return
        spill: Spill[Item] = Spill(Item)
        runs = Runs(spill, _by_name)

        async def keep(batch: list[Item]) -> None:
            for item in batch:
                runs.add(item)
            await trio.lowlevel.checkpoint()

        try:
            await objects(self.store, self.place, keep, takes=takes)
            items = runs.merged()
            while batch := list(islice(items, BATCH_ITEMS)):
                await send(batch)
        finally:
            spill.close()

    async def item(self) -> Item:
        """The one that it names. Raises SourceError."""
        if isinstance(self.place, S3Location):
            assert self.store is not None
            return await one_object(self.store, self.place)
        await trio.lowlevel.checkpoint()
        path = self.place.path
        try:
            found = os.stat(path)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        return Item(path, os.path.basename(path), found.st_size, found.st_mtime_ns)

    async def digests(self, item: Item) -> ObjectDigests:
        """What the store keeps of an object's bytes."""
        assert self.store is not None
        return await self.store.digests(item.key, version_id=item.version_id)

    async def digest(self, item: Item) -> bytes:
        """Of all its bytes, which are read."""
        if self.store is None:
            return await digest_of_file(item.url, READ_ALGORITHM)
        return await digest_of_object(self.store, item.ref, READ_ALGORITHM)


async def is_same(
    left: Item, left_side: Side, right: Item, right_side: Side, *, may_read: bool
) -> bool | None:
    """Do two items hold the same bytes? By what the stores keep of them; local files are read.

    Where that does not tell, objects are read as well, or with ``may_read`` false it is ``None``. Raises
    S3MountError.
    """
    if left.size != right.size:
        await trio.lowlevel.checkpoint()
        return False
    told: bool | None = None
    if left_side.store is not None and right_side.store is not None:
        digests = await left_side.digests(left), await right_side.digests(right)
        told = are_same(*digests)
    elif left_side.store is not None:
        told = await _is_files(right, left, await left_side.digests(left))
    elif right_side.store is not None:
        told = await _is_files(left, right, await right_side.digests(right))
    elif left.url == right.url:
        told = True
    if told is None and (may_read or (left_side.store is None and right_side.store is None)):
        return await left_side.digest(left) == await right_side.digest(right)
    return told


def are_same(left: ObjectDigests, right: ObjectDigests) -> bool | None:
    """Are the bytes of two objects the same, by their digests alone? ``None``: these do not tell."""
    if left.size != right.size:
        return False
    if not left.is_composite and not right.is_composite:
        for algorithm in left.checksums.keys() & right.checksums.keys():
            return left.checksums[algorithm] == right.checksums[algorithm]
    if not (left.etag_is_digest and right.etag_is_digest):
        return None
    if left.etag == right.etag:
        # Of parts, too: other bytes in other parts would need a collision of MD5.
        return True
    if is_md5_etag(left.etag) and is_md5_etag(right.etag):
        return False
    return None


async def _is_files(file: Item, obj: Item, digests: ObjectDigests) -> bool | None:
    """Does a local file hold an object's bytes, by its ETag and checksums? Raises SourceError."""

    def look() -> bool | None:
        try:
            descriptor = os.open(file.url, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{file.url}: {error.strerror}") from error
        try:
            size = os.fstat(descriptor).st_size
            if size != digests.size:
                return False
            return hash_file(
                descriptor, size, digests.etag, digests.etag_is_digest, digests
            ).is_right
        except OSError as error:
            raise LocalDiskError(f"{file.url}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    return await trio.to_thread.run_sync(look)
