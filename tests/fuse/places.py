"""Where a test works: a folder of a mount, with its bucket beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.fuse.bucket_contents import BucketContents


class Mounted(Protocol):
    """The part of a mount that these tests use."""

    @property
    def path(self) -> Path:
        """The mount point."""
        ...

    def wait(self, timeout_s: float = ...) -> Any:
        """Return when all is in S3."""
        ...

    def remount(self, *, fresh_state: bool = ..., fresh_cache: bool = ...) -> Any:
        """Unmount if mounted and mount again, if asked with empty state and cache."""
        ...

    def unmount(self) -> Any:
        """Unmount; all is in S3 then."""
        ...

    def kill9(self) -> Any:
        """Kill the mount's processes and take the dead mount away."""
        ...


class Place(NamedTuple):
    """A folder in a mount. ``prefix`` begins the keys of what lies in it: empty, or ending in ``/``."""

    mount: Mounted
    path: Path
    prefix: str
    contents: BucketContents

    def keys_in_bucket(self) -> set[str]:
        """The keys in the bucket below this place, without the prefix, after all is uploaded."""
        self.mount.wait()
        return {
            key.removeprefix(self.prefix)
            for key in self.contents.listing(self.prefix)
            if key != self.prefix
        }

    def in_bucket(self, name: str) -> bytes:
        """The bytes in the bucket of the file ``name``, after all is uploaded."""
        self.mount.wait()
        return self.contents.read(self.prefix + name)
