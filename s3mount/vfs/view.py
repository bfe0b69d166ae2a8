"""A view: one tree of files as the kernel asks for it, by inode and handle numbers.

The live bucket (``vfs.live``), a snapshot (``vfs.snapshot``) and the folder of snapshots (``vfs.snapshots_dir``) are
views. ``fuse.operations`` translates between them and the kernel, and decides who may be written to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple, Protocol, TypeAlias

from s3mount.refs import Attributes

SLOT_BITS = 40
"""Inode and handle numbers of one view; the bits above are its slot in the table of views. The live bucket, or the
only snapshot, has slot 0."""
FOREVER_S = 3.0e8
"""What cannot change the kernel may believe for ten years."""


ForgetEntry: TypeAlias = Callable[[int, str], Awaitable[None]]
"""Lets the kernel forget a name below a directory, by the number of its inode."""


class Entry(NamedTuple):
    """What stat() shows of an inode. Its name, and then its attributes, may be believed for so many seconds."""

    inode: int
    attributes: Attributes
    size: int
    name_valid_s: float
    attributes_valid_s: float
    links: int = 1


class OpenDirectory(Protocol):
    """A directory that a program reads."""

    def entries(self, place: int) -> AsyncGenerator[tuple[str, Entry | None]]:
        """Names from ``place`` (from 0) on, and what they are; ``None`` stands for one that is not shown.

        The kernel holds one more reference of an entry once the next one is asked for. The one at which the
        generator is closed did not fit any more. Raises OSError, S3MountError.
        """
        ...

    async def rewind(self) -> None:
        """A program begins to read: names are those of now. Raises OSError, S3MountError."""
        ...

    async def dots(self) -> tuple[Entry, Entry]:
        """The directory itself and the one above it. Raises OSError, S3MountError."""
        ...


class View(Protocol):
    """One tree. Every method may raise OSError for what POSIX names, and S3MountError where S3 is asked."""

    async def lookup(self, parent_inode: int, name: str) -> Entry | None:
        """The entry ``name``, of which the kernel now holds one more reference; ``None``: there is none."""
        ...

    def absent_for_s(self, parent_inode: int) -> float:
        """How long the kernel may believe that a name which ``lookup`` did not find is absent."""
        ...

    def forget(self, inode: int, count: int) -> None:
        """The kernel dropped some of its references."""
        ...

    async def getattr(self, inode: int) -> Entry:
        """What an inode is like now."""
        ...

    def open_directory(self, inode: int) -> OpenDirectory:
        """A directory to be read. Raises OSError (ENOTDIR)."""
        ...

    async def readlink(self, inode: int) -> bytes:
        """Where a symbolic link leads. Raises OSError (EINVAL: it is none)."""
        ...

    async def open(self, inode: int, flags: int, pid: int) -> int:
        """The number of a new handle, for the process ``pid``."""
        ...

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer at the end of the file alone."""
        ...

    async def flush(self, handle: int) -> None:
        """A program closed one of its descriptors."""
        ...

    async def fsync(self, handle: int) -> None:
        """Make what was written by the handle durable."""
        ...

    def release(self, handle: int) -> None:
        """The last descriptor of a handle is closed. Repeatable."""
        ...

    async def getxattr(self, inode: int, name: str) -> bytes:
        """One extended attribute. Raises OSError (ENODATA)."""
        ...

    async def listxattr(self, inode: int) -> list[str]:
        """Names of those that can be copied, which ours cannot."""
        ...
