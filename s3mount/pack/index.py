"""The index of a pack as bytes: a line of JSON for each name, packed by gzip. docs/PACKS.md specifies it."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from s3mount.errors import PackError
from s3mount.pack.entry import Entry, why_no_name
from s3mount.refs import ObjectHeaders

VERSION = 1
SUFFIX = ".idx"
"""The index of ``KEY`` is the object ``KEY.idx``."""
INDEX_HEADERS = ObjectHeaders(content_type="application/gzip")
LINE_BYTES_MAX = 64 << 10
PACKED_BYTES_MAX = 256 << 20
UNPACKED_BYTES_MAX = 1 << 30
"""Of an index; a name takes about 200 bytes in it, and packed 60. What is larger is refused, not read into memory."""
_PIECE_BYTES = 1 << 20
_ID = re.compile(r"[0-9]{1,19}(-[0-9a-f]{1,32})?")


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line. What the pack is known by when it is in S3 is told by the object beside it alone.

    ``foreign``: made for a tar file that somebody else wrote.
    """

    s3mount_pack_index: int
    id: str
    pack: str
    size: int = 0
    etag: str = ""
    foreign: bool = False


class Foot(msgspec.Struct, frozen=True):
    """The last line: how many entries there are, and the SHA-256 of all lines before this one."""

    entries: int
    sha256: str


class Index(NamedTuple):
    """One pack's index."""

    head: Head
    entries: list[Entry]


def encode(head: Head, entries: Iterable[Entry]) -> bytes:
    """The bytes of an index; equal for equal values."""
    encoder = msgspec.json.Encoder()
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    digest = hashlib.sha256()
    packed = bytearray()
    count = 0

    def write(value: object) -> None:
        line = encoder.encode(value) + b"\n"
        digest.update(line)
        packed.extend(packer.compress(line))

    write(head)
    for entry in entries:
        write(entry)
        count += 1
    write(Foot(count, digest.hexdigest()))
    packed.extend(packer.flush())
    return bytes(packed)


def decode(data: bytes, place: str, size: int) -> Index:
    """Read an index, which lies at ``place``, of a tar file of ``size`` bytes.

    Raises PackError for one that is not whole, or says what cannot be.
    """
    digest = hashlib.sha256()
    lines = _lines(data, place)
    head: Head | None = None
    entries: list[Entry] = []
    decoder = msgspec.json.Decoder(Entry)
    try:
        first = next(lines, b"")
        head = msgspec.json.decode(first, type=Head)
        if head.s3mount_pack_index != VERSION:
            raise PackError(
                f"{place}: an index of version {head.s3mount_pack_index}, and this s3mount knows {VERSION}"
            )
        digest.update(first)
        last = None
        for line in lines:
            if last is not None:
                digest.update(last)
                entries.append(decoder.decode(last))
            last = line
        foot = msgspec.json.decode(last or b"", type=Foot)
    except msgspec.MsgspecError as error:
        raise PackError(f"{place}: it is no index of a pack: {error}") from error
    if (foot.entries, foot.sha256) != (len(entries), digest.hexdigest()):
        raise PackError(f"{place}: the index is damaged: its checksum is another one")
    _check(head, entries, place, size)
    return Index(head, entries)


def _check(head: Head, entries: list[Entry], place: str, end: int) -> None:
    """What a reader relies on: every range lies in the pack, and every name can be one."""
    if "/" in head.pack or not head.pack:
        raise PackError(f"{place}: it names no pack in its own folder")
    if not _ID.fullmatch(head.id):
        raise PackError(f"{place}: {head.id[:50]!r} is no id of a pack")
    for entry in entries:
        if why_no_name(entry.name.removesuffix("/") if entry.kind == "folder" else entry.name):
            raise PackError(f"{place}: {entry.name[:200]!r} can be no name")
        if not 0 <= entry.header <= entry.body <= end - entry.size <= end:
            raise PackError(f"{place}: {entry.name[:200]!r} lies outside of the pack")
        if entry.order and not _ID.fullmatch(entry.order):
            raise PackError(f"{place}: {entry.order[:50]!r} is no id of a pack")


def _lines(data: bytes, place: str) -> Iterator[bytes]:
    """Its lines, each with its newline, as they are unpacked."""
    unpacker = zlib.decompressobj(31)
    source = io.BytesIO(data)
    rest, total = b"", 0
    try:
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or source.read(_PIECE_BYTES)
            if not packed:
                raise PackError(f"{place}: the index is cut off")
            piece = unpacker.decompress(packed, _PIECE_BYTES)
            total += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            longest = max(map(len, (rest, *whole)))
            if total > UNPACKED_BYTES_MAX or longest > LINE_BYTES_MAX:
                raise PackError(f"{place}: the index is larger than any can be")
            for line in whole:
                yield line + b"\n"
    except zlib.error as error:
        raise PackError(f"{place}: it is no index of a pack: {error}") from error
    if rest:
        raise PackError(f"{place}: the index ends within a line")
