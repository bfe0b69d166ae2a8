"""Small disks, and what fills them. Only root may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.fuse.outcomes import outcome

MIB = 1 << 20


@contextlib.contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator[Path]:
    """A disk of that size at ``path``, which is made, while the block lasts."""
    path.mkdir()
    size = f"size={size_mib}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


class Ballast:
    """A file that takes all the room of a disk, or gives it back."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def take_all(self) -> None:
        """Until nothing more fits. Raises AssertionError on any other error."""
        with self._path.open("ab", buffering=0) as file:
            for size in (MIB, 4096):
                while True:
                    told = outcome(lambda n=size: file.write(bytes(n)))  # type: ignore[misc]
                    if told != "done":
                        assert told == "ENOSPC"
                        break

    def give_back(self) -> None:
        """Remove it; repeatable."""
        self._path.unlink(missing_ok=True)
