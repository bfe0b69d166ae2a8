"""The packs of a folder, their indexes, and which of the names in them are alive: the later entry wins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from s3mount.errors import NoSuchKeyError, PackError
from s3mount.pack import index
from s3mount.pack.entry import BLOCK_BYTES, INDEX_NAME, Entry, padded
from s3mount.pack.headers import END
from s3mount.pack.index import SUFFIX, Head, Index
from s3mount.pack.scanning import Refuse, Scanner
from s3mount.refs import ByteRange, ContentRef, FileSlice, Key, ObjectInfo
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Readable, Store
from s3mount.transfer.scratch import scratch

PACK_SUFFIX = ".tar"
TAIL_BYTES = 64 << 10
"""Read first of a pack without an index beside it: that of a few hundred members is within."""


class Pack(NamedTuple):
    """A tar file in S3, and its index object where it has one."""

    tar: ObjectInfo
    beside: ObjectInfo | None


class Loaded(NamedTuple):
    """A pack with what its index says."""

    pack: Pack
    contents: Index

    @property
    def ref(self) -> ContentRef:
        """The bytes of the pack; they are asked for by the ETag, so that another one's are never taken for them."""
        tar = self.pack.tar
        return ContentRef(tar.key, tar.etag, tar.size)

    @property
    def folder(self) -> Key:
        """On what its names stand."""
        return self.pack.tar.key.rpartition("/")[0] + "/" if "/" in self.pack.tar.key else ""


class Alive(NamedTuple):
    """A name, the pack that has it, and what that says of it."""

    key: Key
    loaded: Loaded
    entry: Entry


async def find_packs(store: Store, prefix: Key) -> list[Pack]:
    """All tar files below ``prefix``, the oldest id first as far as names tell; an index without one is none."""
    tars: dict[Key, ObjectInfo] = {}
    indexes: dict[Key, ObjectInfo] = {}
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        for info in page.objects:
            if info.key.endswith(PACK_SUFFIX):
                tars[info.key] = info
            elif info.key.endswith(PACK_SUFFIX + SUFFIX):
                indexes[info.key.removesuffix(SUFFIX)] = info
        token = page.next_token
        if token is None:
            return [Pack(tars[key], indexes.get(key)) for key in sorted(tars)]


async def pack_at(store: Store, key: Key) -> Pack:
    """The one pack that ``key`` names. Raises NoSuchKeyError."""
    tar = await store.head(key)
    try:
        return Pack(tar, await store.head(key + SUFFIX))
    except NoSuchKeyError:
        return Pack(tar, None)


async def load(store: Readable, pack: Pack, place: str) -> Loaded | None:
    """What the index of a pack says: the object beside it, else its last member; ``None`` where there is neither.

    Raises PackError for one that cannot be read, or is of another tar file than lies there now.
    """
    if pack.beside is None:
        inside = await index_inside(store, pack.tar)
        return None if inside is None else Loaded(pack, index.decode(inside, place, pack.tar.size))
    data = await read_at(store, pack.beside.ref, 0, pack.beside.size)
    found = index.decode(data, f"{place}{SUFFIX}", pack.tar.size)
    if (found.head.size, found.head.etag) != (pack.tar.size, pack.tar.etag):
        raise PackError(
            f"{place} was replaced since its index was made: s3mount pack index --force {place}"
        )
    return Loaded(pack, found)


async def index_inside(store: Readable, tar: ObjectInfo) -> bytes | None:
    """The index that is the last member of a pack, or ``None``. One request, more for thousands of members."""
    length = min(TAIL_BYTES, tar.size)
    while length >= BLOCK_BYTES:
        length -= length % BLOCK_BYTES
        tail = await read_at(store, tar.ref, tar.size - length, length)
        for start in range(len(tail) - BLOCK_BYTES, -1, -BLOCK_BYTES):
            if tail[start : start + len(INDEX_NAME)] != INDEX_NAME.encode():
                continue
            size = _size_at(tail[start : start + BLOCK_BYTES])
            body = start + BLOCK_BYTES
            if size is not None and body + padded(size) + len(END) == len(tail):
                return tail[body : body + size]
        if length * 2 > index.PACKED_BYTES_MAX or length >= tar.size - tar.size % BLOCK_BYTES:
            return None
        length = min(length * 4, tar.size)
    return None


def _size_at(block: bytes) -> int | None:
    try:
        return int(block[124:135], 8)
    except ValueError:
        return None


async def scan(store: Readable, tar: ObjectInfo, refuse: Refuse) -> Index:
    """The index of a tar file that anybody wrote. Raises PackError, StoreError; PreconditionFailedError if replaced."""

    async def read(offset: int, length: int) -> bytes:
        return await read_at(store, tar.ref, offset, length)

    entries = await Scanner(read, tar.size, refuse).run()
    # Among packs it has its place by the time at which it was written.
    order = f"{tar.last_modified_ns // 1_000_000:013}"
    name = tar.key.rpartition("/")[2]
    head = Head(index.VERSION, order, name, tar.size, tar.etag, foreign=True)
    return Index(head, entries)


async def read_at(store: Readable, ref: ContentRef, offset: int, length: int) -> bytes:
    """Bytes of an object, of exactly that version. Raises StoreError, PackError for too many."""
    if not length:
        return b""
    part = None if length == ref.size else ByteRange(offset, length)
    if length <= INLINE_BODY_BYTES_MAX:
        _, data = await store.get(
            ref.key, byte_range=part, version_id=ref.version_id, if_match=ref.etag or None
        )
    else:
        if length > index.PACKED_BYTES_MAX:
            raise PackError(f"{ref.key}: an index of {length} bytes is larger than any can be")
        with scratch() as (file, path):
            file.truncate(length)
            await store.fetch(
                ref.key,
                ByteRange(offset, length),
                FileSlice(path, 0, length),
                version_id=ref.version_id,
                if_match=ref.etag or None,
            )
            data = os.pread(file.fileno(), length, 0)
    if len(data) != length:
        raise PackError(f"{ref.key} ends before {offset + length}")
    return data


def order_of(loaded: Loaded, position: int) -> tuple[str, str, str, int]:
    """By which an entry is later than another of the same key, for whoever looks."""
    pack_id = loaded.contents.head.id
    order = loaded.contents.entries[position].order or pack_id
    return (order, pack_id, loaded.pack.tar.key, position)


def merged(packs: Iterable[Loaded]) -> dict[Key, tuple[Loaded, int]]:
    """For each key the entry that wins, tombstones among them: its pack, and its number there."""
    winners: dict[Key, tuple[Loaded, int]] = {}
    for loaded in packs:
        folder = loaded.folder
        for position, entry in enumerate(loaded.contents.entries):
            key = folder + entry.name
            other = winners.get(key)
            if other is None or order_of(*other) < order_of(loaded, position):
                winners[key] = (loaded, position)
    return winners


def alive(packs: Iterable[Loaded]) -> Iterator[Alive]:
    """What there is after all packs, in the order of keys."""
    winners = merged(packs)
    for key in sorted(winners, key=str.encode):
        loaded, position = winners[key]
        entry = loaded.contents.entries[position]
        if not entry.deleted:
            yield Alive(key, loaded, entry)


def with_order(loaded: Loaded, position: int) -> Entry:
    """An entry as it is in another pack: it says itself where it stands in the order of writes."""
    entry = loaded.contents.entries[position]
    return msgspec.structs.replace(entry, order=entry.order or loaded.contents.head.id)
