"""Digests of whole objects and files, by any algorithm that there is."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import BinaryIO

import trio

from s3mount.bulk.reading import Piece, pieces_of, read_in_order
from s3mount.errors import AlgorithmError, ChecksumError, SourceError
from s3mount.refs import ContentRef
from s3mount.s3.store import Store
from s3mount.transfer.proving import CRCS, Hash

READ_BYTES = 1 << 20
BY_LENGTH = {8: "crc32c", 16: "crc64nvme", 32: "md5", 40: "sha1", 56: "sha224", 64: "sha256"}
BY_LENGTH |= {96: "sha384", 128: "sha512"}
"""Which algorithm a digest in hexadecimal digits is taken for where none is named."""


def new_hash(algorithm: str) -> Hash:
    """A digest that grows. Raises AlgorithmError for what is none, or has no length of its own."""
    name = algorithm.lower()
    if name in CRCS:
        return CRCS[name]()
    try:
        found = hashlib.new(name, usedforsecurity=False)
        found.digest()
    except (ValueError, TypeError):
        known = sorted(each for each in hashlib.algorithms_guaranteed if "shake" not in each)
        raise AlgorithmError(
            f"{algorithm!r} is no digest: {', '.join([*sorted(CRCS), *known])}"
        ) from None
    return found


class Pieces:
    """The pieces of one object, for ``read_in_order``."""

    def __init__(self, store: Store, source: ContentRef) -> None:
        self._pieces = pieces_of(store, source)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> Piece:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def digest_of_object(store: Store, source: ContentRef, algorithm: str) -> bytes:
    """The digest of exactly ``source``, whose ranges are read in parallel. Raises as ``read_in_order``."""
    running = new_hash(algorithm)

    async def add(piece: Piece, data: memoryview) -> None:
        await trio.to_thread.run_sync(running.update, data)

    await read_in_order(Pieces(store, source), add)
    return running.digest()


async def digest_of_file(path: str, algorithm: str) -> bytes:
    """The digest of a local file, read in a thread. Raises SourceError."""
    running = new_hash(algorithm)

    def read() -> None:
        try:
            with open(path, "rb") as file:
                for piece in _read(file):
                    running.update(piece)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error

    await trio.to_thread.run_sync(read)
    return running.digest()


def _read(file: BinaryIO) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(READ_BYTES))
    while length := file.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:length]


_ESCAPED = re.compile(r"\\[nr\\]")


def sum_line(digest: str, name: str) -> str:
    """A line as md5sum writes it: a name with a newline or a backslash in it is escaped, and the line says so."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    begins = "\\" if escaped != name else ""
    return f"{begins}{digest}  {escaped}"


def parse_sum_line(line: str) -> tuple[str, str]:
    """Digest and name of a line. Raises ChecksumError for what is none."""
    is_escaped = line.startswith("\\")
    digest, separator, name = line.removeprefix("\\").partition(" ")
    digest = digest.lower()
    if not separator or name[:1] not in (" ", "*") or len(name) < 2:
        raise ChecksumError("it is no line of a digest, two spaces and a name")
    with contextlib.suppress(ValueError):
        bytes.fromhex(digest)
        name = name[1:]
        if is_escaped:
            meant = {"\\n": "\n", "\\r": "\r", "\\\\": "\\"}
            name = _ESCAPED.sub(lambda found: meant[found[0]], name)
        return digest, name
    raise ChecksumError(f"{digest!r} is no digest")
