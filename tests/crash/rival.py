"""Somebody else who writes the same keys past the mount: neither version may get lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from botocore.exceptions import ClientError

from tests.crash.load import Program
from tests.crash.told import Doing
from tests.fuse.bucket_contents import S3Contents

ARRIVAL_S = 5.0


class Rival(Program):
    """One file after the other: written, in S3, opened, written past the mount, closed.

    ``must`` are the contents that have to be somewhere below the folder, ``known`` all that may be.
    """

    pause_s = 0.2

    def __init__(self, top: Path, seed: int, contents: S3Contents) -> None:
        super().__init__(top, seed)
        self.must: set[bytes] = set()
        self.known: set[bytes] = {b""}
        self._contents = contents

    def operations(self) -> list[Callable[[], None]]:
        return [self._turn]

    def _fresh(self) -> bytes:
        data = self.data(200)
        self.known.add(data)
        return data

    def _turn(self) -> None:
        self._number += 1
        path = self.top / f"file{self._number}"
        key = f"{self.top.name}/{path.name}"
        first, theirs, second = self._fresh(), self._fresh(), self._fresh()
        self.told.begin(Doing(f"write {path.name}", dict(self.told.now)))
        path.write_bytes(first)
        self.must.add(first)
        if not self._arrived(key, first):
            return
        self.told.begin(Doing(f"replace {path.name} while somebody else does", dict(self.told.now)))
        fd = os.open(path, os.O_RDWR)
        try:
            self.must.discard(first)
            os.pwrite(fd, second, 0)
            self._contents.put(key, theirs)
            self.must.add(theirs)
        finally:
            os.close(fd)
        self.must.add(second)

    def _arrived(self, key: str, data: bytes) -> bool:
        end = time.monotonic() + ARRIVAL_S
        while time.monotonic() < end and not self._stop.is_set() and not self._is_dead():
            try:
                if self._contents.read(key) == data:
                    return True
            except (KeyError, ClientError):
                time.sleep(0.1)
        return False

    def lost(self, there: set[bytes]) -> list[str]:
        """What is wrong with the contents that are ``there``."""
        lost = [f"lost: {data[:8].hex()}" for data in self.must - there]
        return lost + [f"nobody wrote: {data[:8].hex()}" for data in there - self.known]
