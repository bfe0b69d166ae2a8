"""Somebody else in the bucket: objects put and deleted past the mount, on keys of their own and on shared ones."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.fuse.bucket_contents import S3Contents
from tests.soak.crew import REPLACED, Crew, Member

KIB = 1 << 10
MIB = 1 << 20
TOP = "foreign"
SHARED = "shared"
SMALL_NAMES = tuple(f"f{number:02}" for number in range(40))
LARGE_NAMES = tuple(f"large{number}" for number in range(3))
HEAD_BYTES = 32
WALKED = "still"
"""The folder of trees that nobody changes: a walk of it must see all, or be told."""
TREES, FOLDERS, FILES = 16, 6, 8


def content_of(name: str, number: int) -> bytes:
    """What the ``number``-th put of a foreign file holds: it tells itself which one it is."""
    rng = random.Random(f"{name} {number}")
    large = name in LARGE_NAMES
    size = (
        rng.randrange(12 * MIB, 24 * MIB)
        if large
        else rng.choice((0, 100, 5000, 150 * KIB, 900 * KIB))
    )
    return f"{number:>{HEAD_BYTES - 1}}\n".encode() + rng.randbytes(size)


def plant(contents: S3Contents) -> None:
    """The trees that stay as they are."""
    for tree in range(TREES):
        for folder in range(FOLDERS):
            for file in range(FILES):
                contents.put(f"{WALKED}/t{tree:02}/d{folder}/f{file}", b"stays")


class Stranger(Member):
    """Puts and deletes files below ``foreign/``. ``now`` is the number of the last put of each that is there."""

    def __init__(self, crew: Crew, seed: int, contents: S3Contents) -> None:
        super().__init__("a stranger", crew, seed, pause_s=0.7)
        self.now: dict[str, int] = {}
        self.puts: dict[str, int] = {}
        self._contents = contents

    def turn(self) -> None:
        """One put or delete."""
        name = self.rng.choice(LARGE_NAMES if self.rng.random() < 0.02 else SMALL_NAMES)
        if name in self.now and self.rng.random() < 0.3:
            del self.now[name]
            self._contents.delete(f"{TOP}/{name}")
            self.crew.count("foreign deletes")
            return
        number = self.puts[name] = self.puts.get(name, 0) + 1
        self._contents.put(f"{TOP}/{name}", content_of(name, number))
        self.now[name] = number
        self.crew.count("foreign puts")

    def wanted(self) -> dict[str, bytes]:
        """What must be below ``foreign/`` at the end."""
        return {name: content_of(name, number) for name, number in self.now.items()}


class Reader(Member):
    """Reads foreign files, whole and at random places: one version from first byte to last, or an error."""

    allowed = REPLACED

    def __init__(self, number: int, crew: Crew, seed: int, root: Path, stranger: Stranger) -> None:
        super().__init__(f"reader {number}", crew, seed, pause_s=0.4)
        self._root = root
        self._stranger = stranger

    def turn(self) -> None:
        """One file."""
        large = self.rng.random() < 0.15
        name = self.rng.choice(LARGE_NAMES if large else SMALL_NAMES)
        fd = os.open(self._root / TOP / name, os.O_RDONLY)
        try:
            head = read_whole(fd, HEAD_BYTES, 0)
            number = int(head or b"0")
            if number < 1 or number > self._stranger.puts.get(name, 0):
                self.crew.is_wrong(f"{name} begins with {head!r}")
                return
            content = content_of(name, number)
            for at, size in self._pieces(len(content), large):
                data = read_whole(fd, size, at)
                if data != content[at : at + size]:
                    self.crew.is_wrong(
                        f"{name}, put {number}: {len(data)} wrong bytes at {at} of {len(content)}"
                    )
                    return
                self.crew.count("bytes read and compared", len(data))
        finally:
            os.close(fd)

    def _pieces(self, length: int, large: bool) -> list[tuple[int, int]]:
        if not large:
            return [(0, length + 1)]
        if self.rng.random() < 0.5:
            return [(at, MIB) for at in range(0, length + 1, MIB)]
        return [
            (self.rng.randrange(length), self.rng.choice((100, 70_000, 2 * MIB))) for _ in range(12)
        ]


def read_whole(fd: int, size: int, at: int) -> bytes:
    """``pread()`` until all is there or the file ends: an error further on cuts a read short. Raises OSError."""
    data = b""
    while len(data) < size and (piece := os.pread(fd, size - len(data), at + len(data))):
        data += piece
    return data


class Lines:
    """The lines that were put into shared files: each has to be somewhere at the end, in a file or a conflict copy."""

    NAMES = tuple(f"lines{number}" for number in range(4))

    def __init__(self) -> None:
        self._must: set[str] = set()
        self._known: set[str] = set()
        self._found: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, line: str) -> None:
        """It may be somewhere from now on."""
        with self._lock:
            self._known.add(line)

    def end(self, line: str) -> None:
        """It was accepted."""
        with self._lock:
            self._must.add(line)

    def find(self, content: bytes) -> list[str]:
        """``content`` is what a file held that is taken away; what in it nobody wrote."""
        lines = content.decode(errors="replace").splitlines()
        with self._lock:
            self._found.update(lines)
            return [line for line in lines if line not in self._known]

    def lost(self) -> list[str]:
        """Lines that were accepted and never found."""
        return sorted(self._must - self._found)


def add_through(path: Path, line: str) -> None:
    """Read the file, write it with one more line. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        content = read_whole(fd, MIB, 0)
        data = line.encode() + b"\n"
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], len(content) + done)
    finally:
        os.close(fd)


class LineWriter(Member):
    """Adds lines to shared files through the mount."""

    allowed = REPLACED

    def __init__(self, crew: Crew, seed: int, root: Path, lines: Lines) -> None:
        super().__init__("a writer of lines", crew, seed, pause_s=0.5)
        self._root = root / SHARED
        self._lines = lines
        self._number = 0

    def turn(self) -> None:
        """One line."""
        self._number += 1
        line = f"mount {self._number}"
        self._lines.begin(line)
        add_through(self._root / self.rng.choice(Lines.NAMES), line)
        self._lines.end(line)
        self.crew.count("lines through the mount")


class LineStranger(Member):
    """Adds lines to shared files past the mount, never over what it has not seen; collects conflict copies."""

    def __init__(self, crew: Crew, seed: int, contents: S3Contents, lines: Lines) -> None:
        super().__init__("a stranger with lines", crew, seed, pause_s=1.0)
        self._contents = contents
        self._lines = lines
        self._number = 0

    def turn(self) -> None:
        """One line; now and then the copies."""
        if self.rng.random() < 0.1:
            self.collect()
        self._number += 1
        line = f"stranger {self._number}"
        client, bucket = self._contents.client, self._contents.bucket
        key = f"{SHARED}/{self.rng.choice(Lines.NAMES)}"
        old, condition = b"", {"IfNoneMatch": "*"}
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
            old, condition = answer["Body"].read(), {"IfMatch": answer["ETag"].strip('"')}
        except client.exceptions.NoSuchKey:
            self.crew.count("shared files made by a stranger")
        self._lines.begin(line)
        try:
            client.put_object(Bucket=bucket, Key=key, Body=old + line.encode() + b"\n", **condition)
        except ClientError as error:
            if status_of(error) not in (404, 409, 412):
                raise
            return
        self._lines.end(line)
        self.crew.count("lines past the mount")

    def collect(self) -> None:
        """Note what conflict copies hold, and remove them."""
        for key in self._contents.listing(f"{SHARED}/lines"):
            if ".conflict-" in key:
                self._found(key)
                self._contents.delete(key)
                self.crew.count("conflict copies")

    def collect_all(self) -> None:
        """What all shared files hold at the end."""
        for key in self._contents.listing(f"{SHARED}/lines"):
            self._found(key)

    def _found(self, key: str) -> None:
        strange = self._lines.find(self._contents.read(key))
        if strange:
            self.crew.is_wrong(f"{key} has lines of nobody: {strange[:3]}")


class Tosser(Member):
    """Files that the mount and strangers make, change, move and delete without regard for each other."""

    allowed = (*REPLACED, errno.ENOTDIR)
    NAMES = tuple(f"toss{number}" for number in range(6))

    def __init__(self, crew: Crew, seed: int, root: Path, contents: S3Contents) -> None:
        super().__init__("a tosser", crew, seed, pause_s=0.5)
        self._root = root / SHARED
        self._contents = contents
        self._number = 0
        self._began: set[bytes] = {b""}

    def turn(self) -> None:
        """One change, by one of both."""
        self._number += 1
        name, other = self.rng.sample(self.NAMES, 2)
        data = f"toss {self._number}".encode()
        self._began.add(data)
        what = self.rng.randrange(6)
        self.crew.count("tossed files")
        if what < 2:
            (self._root / name).write_bytes(data)
        elif what == 2:
            (self._root / name).rename(self._root / other)
        elif what == 3:
            (self._root / name).unlink()
        elif what == 4:
            self._contents.put(f"{SHARED}/{name}", data)
        else:
            self._contents.delete(f"{SHARED}/{name}")

    def check(self) -> None:
        """At the end there is nothing that nobody wrote."""
        for key in self._contents.listing(f"{SHARED}/toss"):
            data = self._contents.read(key)
            if data not in self._began:
                self.crew.is_wrong(f"{key} holds what nobody wrote: {data[:40]!r}")


def status_of(error: ClientError) -> int:
    """The HTTP status of a refused request."""
    told: dict[str, Any] = error.response["ResponseMetadata"]  # type: ignore[assignment]
    return int(told["HTTPStatusCode"])
