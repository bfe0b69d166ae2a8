"""The same for programs without trio: a loop in a thread of its own does the work, and each call waits for it."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import trio

from s3mount import tasks
from s3mount.api.bucket import Bucket, PathLike, Upload, open_bucket
from s3mount.api.files import ObjectFile
from s3mount.api.listing import Listing
from s3mount.api.outcomes import Summary
from s3mount.bulk.selecting import Item
from s3mount.refs import ANY, Condition, Key, ObjectHeaders, ObjectInfo, PutResult

T = TypeVar("T")
BUFFER_BYTES = 1 << 20
NO_HEADERS = ObjectHeaders()


@contextlib.contextmanager
def open_sync(url: str, **settings: Any) -> Iterator[BlockingBucket]:
    """``with open_sync("s3://BUCKET/PREFIX") as bucket``: ``open_bucket`` for any thread. Raises what that does."""
    started: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, Bucket] | BaseException] = (
        queue.SimpleQueue()
    )
    ended = trio.Event()
    failures: list[BaseException] = []

    async def main() -> None:
        async with open_bucket(url, **settings) as bucket:
            started.put((trio.lowlevel.current_trio_token(), bucket))
            await ended.wait()

    def run() -> None:
        try:
            tasks.run(main)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asked
            failures.append(error)
            started.put(error)

    thread = threading.Thread(target=run, name="s3mount", daemon=True)
    thread.start()
    opened = started.get()
    if isinstance(opened, BaseException):
        thread.join()
        raise opened
    token, bucket = opened
    try:
        yield BlockingBucket(token, bucket)
    finally:
        # Where the loop has ended something in it failed, which is raised below.
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(ended.set)
        thread.join()
    if failures:
        raise failures[0]


class BlockingBucket:
    """``Bucket`` whose methods wait; for any number of threads, but not within a trio program."""

    def __init__(self, token: trio.lowlevel.TrioToken, bucket: Bucket) -> None:
        self._token = token
        self.inner = bucket

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work()`` in the loop. Raises what that raises."""
        return trio.from_thread.run(work, trio_token=self._token)

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self.inner.name

    def head(self, key: Key, *, version_id: str | None = None) -> ObjectInfo:
        """See ``Bucket.head``."""
        return self.do(partial(self.inner.head, key, version_id=version_id))

    def get(self, key: Key, *, version_id: str | None = None) -> bytes:
        """See ``Bucket.get``."""
        return self.do(partial(self.inner.get, key, version_id=version_id))

    def put(
        self,
        key: Key,
        data: bytes,
        headers: ObjectHeaders = NO_HEADERS,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Bucket.put``."""
        return self.do(partial(self.inner.put, key, data, headers, condition=condition))

    def open(self, key: Key, *, version_id: str | None = None) -> io.BufferedReader:
        """An object as a binary file: ``read``, ``seek``, ``readinto``, as pandas, pyarrow and zipfile want it."""
        file = self.do(partial(self.inner.open, key, version_id=version_id))
        return io.BufferedReader(_RawFile(self.do, file), BUFFER_BYTES)

    def list(self, prefix: str = "", **chosen: Any) -> Iterator[Item]:
        """See ``Bucket.list``: the items one by one, as they are listed."""
        listing = self.inner.list(prefix, **chosen)
        items = self.do(partial(_iterator, listing))
        while True:
            item = self.do(partial(anext, items, None))
            if item is None:
                return
            yield item

    def upload(self, sources: Iterable[PathLike | Upload], **how: Any) -> Summary:
        """See ``Bucket.upload``. ``progress`` is called in the thread of the loop."""
        return self.do(partial(self.inner.upload, sources, **how))

    def download(self, keys: Iterable[Key], folder: PathLike, **how: Any) -> Summary:
        """See ``Bucket.download``."""
        return self.do(partial(self.inner.download, keys, folder, **how))

    def copy(self, keys: Iterable[Key], to: str, **how: Any) -> Summary:
        """See ``Bucket.copy``."""
        return self.do(partial(self.inner.copy, keys, to, **how))

    def copy_as(self, key: Key, to: str) -> None:
        """See ``Bucket.copy_as``."""
        self.do(partial(self.inner.copy_as, key, to))

    def move(self, keys: Iterable[Key], to: str, **how: Any) -> Summary:
        """See ``Bucket.move``."""
        return self.do(partial(self.inner.move, keys, to, **how))

    def delete(self, keys: Iterable[Key], **how: Any) -> Summary:
        """See ``Bucket.delete``."""
        return self.do(partial(self.inner.delete, keys, **how))


async def _iterator(listing: Listing) -> Any:
    await trio.lowlevel.checkpoint()
    return aiter(listing)


class _RawFile(io.RawIOBase):
    """What ``io.BufferedReader`` reads from."""

    def __init__(self, do: Callable[[Callable[[], Awaitable[T]]], T], file: ObjectFile) -> None:
        self._do: Callable[[Callable[[], Awaitable[Any]]], Any] = do
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        data = self._do(partial(self._file.read, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        data: bytes = self._do(self._file.read)
        return data
