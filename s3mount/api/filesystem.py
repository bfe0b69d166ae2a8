"""fsspec's file system: ``s3mount://BUCKET/KEY`` for pandas, pyarrow, dask and all others that take fsspec's URLs."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from s3mount.api.blocking import BlockingBucket, open_sync
from s3mount.api.bucket import Upload
from s3mount.bulk.selecting import Item
from s3mount.errors import NoSuchBucketError, NoSuchKeyError

OF_FSSPEC = frozenset(("asynchronous", "loop", "skip_instance_cache", "use_listings_cache"))
"""What fsspec itself passes beside the settings."""


class S3MountFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """``fsspec.filesystem("s3mount", endpoint_url=...)``: settings as for ``s3mount.open``.

    Folders are what keys imply: they are not made, and gone with their last object. What is written is in S3, whole,
    when it is closed. Raises FileNotFoundError, and S3MountErrors for all else.
    """

    protocol = "s3mount"
    root_marker = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._settings = {name: settings[name] for name in settings.keys() - OF_FSSPEC}
        self._buckets: dict[str, BlockingBucket] = {}
        self._stack = contextlib.ExitStack()
        self._opening = threading.Lock()

    def close(self) -> None:
        """End all connections; used again, it opens new ones."""
        with self._opening:
            self._buckets.clear()
            self._stack.close()

    def _at(self, path: str) -> tuple[BlockingBucket, str]:
        """The bucket, and the key in it."""
        name, _, key = self._strip_protocol(path).partition("/")
        with self._opening:
            if name not in self._buckets:
                opened = open_sync(f"s3://{name}", **self._settings)
                self._buckets[name] = self._stack.enter_context(opened)
            return self._buckets[name], key

    # ------------------------------------------------------------------- looking

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size, type and time of an object or a folder. Raises FileNotFoundError."""
        bucket, key = self._at(path)
        is_there = False
        with contextlib.suppress(NoSuchKeyError, NoSuchBucketError):
            if key:
                with contextlib.suppress(NoSuchKeyError):
                    info = bucket.head(key)
                    name = f"{bucket.name}/{key}"
                    return _file(name, info.size, info.last_modified_ns, info.etag)
            found = bucket.list(f"{key}/" if key else "")
            is_there = not key or next(found, None) is not None
        if not is_there:
            raise FileNotFoundError(path)
        return _folder(f"{bucket.name}/{key}".rstrip("/"))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What lies in a folder, or the one object of that name. Raises FileNotFoundError."""
        bucket, key = self._at(path)
        folder = f"{key}/" if key else ""
        found = [
            _listed(bucket.name, item)
            for item in bucket.list(folder, folders=True)
            if item.key != folder
        ]
        if not found:
            about = self.info(path)
            found = [about] if about["type"] == "file" else []
        return found if detail else [about["name"] for about in found]

    def modified(self, path: str) -> datetime:
        """When S3 got the object. Raises FileNotFoundError."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    # ------------------------------------------------------------------- changes

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        bucket, key = self._at(path)
        if mode == "rb":
            with _as_file_not_found(path):
                return bucket.open(key)
        if mode not in ("wb", "xb"):
            # As fsspec's own files do.
            raise NotImplementedError(f"mode {mode!r}: objects are read, or written whole")
        exists = "fail" if mode == "xb" else "overwrite"
        return _Written(lambda source: bucket.upload([Upload(source, key)], exists=exists))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy an object, inside S3. Raises FileNotFoundError."""
        bucket, key = self._at(path1)
        with _as_file_not_found(path1):
            bucket.copy_as(key, f"s3://{self._strip_protocol(path2)}")

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete objects, 1,000 in a request."""
        by_bucket: dict[str, list[str]] = {}
        for each in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            bucket, key = self._at(each)
            by_bucket.setdefault(bucket.name, []).append(key)
        for name, keys in by_bucket.items():
            self._at(name)[0].delete(filter(None, keys))

    def _rm(self, path: str) -> None:
        self.rm(path)


class _Written:
    """A file that becomes an object when it is closed; not when its block ends by an exception."""

    def __init__(self, send: Callable[[str], object]) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="s3mount-")  # noqa: SIM115 - closed below
        self._send = send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def close(self) -> None:
        """Send it. Repeatable. Raises SomeFailedError."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            self._send(self._file.name)
        finally:
            self._file.close()


@contextlib.contextmanager
def _as_file_not_found(path: str) -> Iterator[None]:
    try:
        yield
    except NoSuchKeyError as error:
        raise FileNotFoundError(path) from error


def _file(name: str, size: int, modified_ns: int, etag: str) -> dict[str, Any]:
    return {"name": name, "type": "file", "size": size, "mtime": modified_ns / 1e9, "etag": etag}


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "type": "directory", "size": 0}


def _listed(bucket: str, item: Item) -> dict[str, Any]:
    name = f"{bucket}/{item.key}"
    if item.is_folder:
        return _folder(name.rstrip("/"))
    return _file(name, item.size or 0, item.modified_ns, item.etag)
