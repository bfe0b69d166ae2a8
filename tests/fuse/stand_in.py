"""A plain folder in the place of a mount and its bucket, to try the tests themselves.

With ``S3MOUNT_TEST_STAND_IN=/some/folder`` (on ext4 or another local file system) every test of this
folder that is not marked ``needs_s3`` runs there. What fails there is wrong in the test, since the
mount is to behave as a local file system does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tests.fuse.bucket_contents import Held


class StandInMount:
    """A folder with the interface of a mount; nothing is pending, and nothing is lost by a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait(self, timeout_s: float = 0) -> None:
        """Nothing to wait for."""

    def remount(self, *, fresh_state: bool = False, fresh_cache: bool = False) -> None:
        """Nothing is cached."""

    def unmount(self) -> None:
        """Nothing is mounted."""

    def kill9(self) -> None:
        """Nothing runs."""

    @property
    def alive(self) -> bool:
        """Always."""
        return True


class StandInContents:
    """BucketContents as the folder's files would be kept: markers, links, attributes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def listing(self, prefix: str = "") -> dict[str, Held]:
        """All keys that begin with ``prefix``; ETags are left empty."""
        found: dict[str, Held] = {}
        for folder, folders, files in os.walk(self._root):
            for name in (*folders, *files):
                path = Path(folder, name)
                key = str(path.relative_to(self._root))
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    found[key + "/"] = Held(0, "")
                else:
                    found[key] = Held(status.st_size, "")
        return {key: held for key, held in found.items() if key.startswith(prefix)}

    def read(self, key: str) -> bytes:
        """The file's bytes or the link's target."""
        path = self._at(key)
        if path.is_symlink():
            return os.fsencode(os.readlink(path))
        return path.read_bytes() if path.is_file() else b""

    def metadata(self, key: str) -> Mapping[str, str]:
        """The attributes as s3fs writes them."""
        status = self._at(key).lstat()
        seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
        return {
            "mode": str(status.st_mode),
            "uid": str(status.st_uid),
            "gid": str(status.st_gid),
            "mtime": f"{seconds}.{nanoseconds:09d}",
        }

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Replace the file whole, as an object is replaced."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".put")
        new.write_bytes(body)
        new.rename(path)

    def delete(self, key: str) -> None:
        """Remove the file."""
        (self._root / key).unlink(missing_ok=True)

    def _at(self, key: str) -> Path:
        path = self._root / key
        if not os.path.lexists(path) or key.endswith("/") != stat.S_ISDIR(path.lstat().st_mode):
            raise KeyError(key)
        return path
