"""HEAD, GET and LIST by the HTTP client, with everything checked that can be."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
import trio

from s3mount.errors import (
    AccessDeniedError,
    ChecksumError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import ByteRange, ETag, FileSlice, Key, ListPage, ObjectInfo, VersionId
from s3mount.s3.calls.pages import Following, Pages, folder_of, list_merged, list_names
from s3mount.s3.checksums import (
    CacheBlockSums,
    RunningDigest,
    RunningMD5,
    etag_is_md5,
    md5,
    promised,
)
from s3mount.s3.documents import parse_list
from s3mount.s3.headers import (
    bare_etag,
    check_key,
    http_date_ns,
    object_info,
    whole_number,
)
from s3mount.s3.http.genuine import is_marked
from s3mount.s3.http.http_client import HttpClient, file_sink
from s3mount.s3.http.requests import Answer, Call, local_failure
from s3mount.s3.http.signing import canonical_query
from s3mount.s3.http.wire import Head, Sink
from s3mount.s3.store import INLINE_BODY_BYTES_MAX
from s3mount.s3.traits import Traits

_log = logging.getLogger(__name__)

DAMAGED_TRIES = 3
"""How often a body with a wrong digest is fetched before that is reported."""
LIST_BYTES_PER_KEY = 400
"""About what a key takes in a list page, for the deadline."""

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")


class Reader:
    """The reading half of a store."""

    def __init__(self, http: HttpClient, traits: Traits) -> None:
        self._http = http
        self._traits = traits
        self._pages = Pages(http)
        self._following = Following(is_ordered=not http.is_express)

    async def head(self, key: Key, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        answer = await self.head_answer(key, version_id)
        return object_info(key, answer.headers, content_length(answer))

    async def told_apart(
        self, error: AccessDeniedError, key: Key, version_id: VersionId | None = None
    ) -> StoreError:
        """What a refusal to read ``key`` means: NoSuchKeyError where the key is not there, else ``error``.

        Without the right to list the whole bucket S3 refuses absent keys as well (GetObject, Permissions). A
        list of this key alone is allowed where a policy allows the prefix that it lies below.
        """
        if (
            version_id is not None
            or error.code not in ("", "AccessDenied")
            or self._http.is_express
        ):
            return error
        try:
            page = await self.list_page(key, None, None, None, 1)
        except StoreError as refused:
            _log.debug("whether %r is there cannot be told: %s", key, refused)
            return error
        if page.objects and page.objects[0].key == key:
            return error
        return NoSuchKeyError("the object does not exist", key=key, status=404)

    async def head_answer(
        self, key: Key, version_id: VersionId | None = None, *, checksum: bool = False
    ) -> Answer:
        """HEAD as it came back; with ``checksum`` the store's checksum is asked for. Raises as ``Store.head``."""
        try:
            return await self._head(key, version_id, checksum=checksum)
        except AccessDeniedError as error:
            raise await self.told_apart(error, key, version_id) from error

    async def _head(
        self, key: Key, version_id: VersionId | None = None, *, checksum: bool = False
    ) -> Answer:
        check_key(key)
        headers = {"x-amz-checksum-mode": "ENABLED"} if checksum else {}
        query = _version_query(version_id)
        call = Call("head", "HEAD", key, query=query, headers=headers)
        try:
            answer = await self._http.call(call)
        except StoreError as error:
            # Has nothing of S3, or no body to tell that a token has expired: GET is told, and may cure it.
            is_untold = isinstance(error, RejectedError) and error.status == 400 and not error.code
            if error.retryable or not (error.is_bare or is_untold):
                raise
            await self.confirm(key, version_id)
            answer = await self._http.call(call)
        else:
            if not is_marked(answer.headers) and self._http.marks.are_always_there("GET"):
                await self.confirm(key, version_id)
        _must_be_version(answer.headers, version_id, key)
        return answer

    async def confirm(self, key: Key, version_id: VersionId | None = None) -> None:
        """Return when S3 itself says that there is such an object; else raise what it says, with its document."""
        call = Call(
            "get",
            "GET",
            key,
            query=_version_query(version_id),
            headers={"range": "bytes=0-0"},
            on_head=lambda head: _check_head(head, key),
        )
        try:
            await self._http.call(call)
        except RangeError:
            return  # it is empty

    async def get(
        self,
        key: Key,
        byte_range: ByteRange | None,
        version_id: VersionId | None,
        if_match: ETag | None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        check_key(key)
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if byte_range is not None:
            headers["range"] = f"bytes={byte_range.start}-{byte_range.stop - 1}"
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        call = Call(
            "get",
            "GET",
            key,
            query=_version_query(version_id),
            headers=headers,
            size_bytes=min(byte_range.length if byte_range else 65536, INLINE_BODY_BYTES_MAX),
            on_head=lambda head: _check_head(head, key),
        )
        found: set[str] = set()
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                answer = await self._http.call(call)
            except AccessDeniedError as error:
                raise await self.told_apart(error, key, version_id) from error
            info = self._described(key, answer, byte_range)
            _must_be_version(answer.headers, version_id, key)
            if if_match is not None and info.etag != if_match:
                raise PreconditionFailedError("the object was replaced", key=key, status=412)
            digest = self._expected(answer.headers) if info.size == len(answer.body) else None
            if digest is None:
                break
            digest.update(answer.body)
            if digest.matches:
                self._learn(digest, info)
                info = msgspec.structs.replace(info, is_proven=True)
                break
            self._http.statistics.checksum_errors += 1
            found.add(digest.found)
            if not left:
                await self._must_mislead(
                    digest, found, info, partial(self._in_halves, info, version_id)
                )
        return info, answer.body

    async def _in_halves(self, info: ObjectInfo, version_id: VersionId | None) -> str:
        """The MD5 of a small object that is read in two ranges."""
        digest = RunningMD5("")
        for half in _halves(info.size):
            _, body = await self.get(info.key, half, version_id, info.etag)
            digest.update(body)
        return digest.found

    async def _must_mislead(
        self,
        digest: RunningDigest,
        found: set[str],
        info: ObjectInfo,
        in_halves: Callable[[], Awaitable[str]],
    ) -> None:
        """Raises ChecksumError unless this store's ETags look like MD5s and are none, which is learned.

        That is so when all tries brought the same bytes, and so do two ranges, which damage on the way befalls
        elsewhere. Never where ETags were seen to be MD5s, or where a checksum tells that the bytes are wrong.
        """
        may_mislead = isinstance(digest, RunningMD5) and len(found) == 1
        is_same = may_mislead and not self._traits.etag_is_md5 and await in_halves() in found
        # Meanwhile another object's may have been seen to be one.
        if not is_same or self._traits.etag_is_md5:
            raise ChecksumError("the store sent other bytes than its checksum says", key=info.key)
        self._traits.etag_is_md5 = False

    def _described(self, key: Key, answer: Answer, byte_range: ByteRange | None) -> ObjectInfo:
        if answer.status != 206 and "content-range" not in answer.headers:
            if byte_range is not None and byte_range.start:
                raise ServerFaultError("the store ignored the range that was asked for", key=key)
            return object_info(key, answer.headers, len(answer.body))
        start, stop, size = _content_range(answer.headers.get("content-range", ""), key)
        if byte_range is None or start != byte_range.start or stop - start != len(answer.body):
            raise ServerFaultError("the store sent another range than was asked for", key=key)
        return object_info(key, answer.headers, size)

    def _expected(self, headers: Mapping[str, str]) -> RunningDigest | None:
        """The whole object's checksum or, without one, its MD5, to be fed; ``None`` where the store says neither.

        Where the store tells checksums that it does not verify they are often wrong, and none.
        """
        traits = self._traits
        checksum = None if traits.verifies_checksums is False else promised(headers)
        etag = bare_etag(headers.get("etag", ""))
        if checksum is not None:
            return checksum
        is_md5 = traits.etag_is_md5 is not False and etag_is_md5(etag, headers)
        return RunningMD5(etag) if is_md5 else None

    def _learn(self, digest: RunningDigest, info: ObjectInfo) -> None:
        """What a digest that matched tells of the store."""
        if info.size and isinstance(digest, RunningMD5):
            self._traits.etag_is_md5 = True

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        version_id: VersionId | None,
        if_match: ETag | None,
        on_progress: Callable[[int], None] | None,
    ) -> ObjectInfo:
        """See ``Store.fetch``. A try that broke off is continued where it ended."""
        check_key(key)
        if sink.length != byte_range.length:
            raise RejectedError("the sink's length is not the range's", key=key)
        try:
            fd = os.open(sink.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise local_failure(sink.path, error) from error
        try:
            transfer = _Fetch(
                key, byte_range, sink, fd, version_id, if_match, on_progress, self._expected
            )
            return await self._transfer(transfer, sink, version_id)
        finally:
            os.close(fd)

    async def _transfer(
        self, transfer: _Fetch, sink: FileSlice, version_id: VersionId | None
    ) -> ObjectInfo:
        """Run a fetch until what came is what the store says. Raises as ``fetch``."""
        found: set[str] = set()
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                await self._http.call(transfer.call)
            except AccessDeniedError as error:
                raise await self.told_apart(error, transfer.key, version_id) from error
            info, digest = transfer.info, transfer.digest
            if transfer.complete and (digest is None or digest.matches):
                if digest is not None:
                    self._learn(digest, info)
                    info = msgspec.structs.replace(info, is_proven=True)
                break
            self._http.statistics.checksum_errors += 1
            if digest is None or not transfer.complete:
                if not left:
                    raise ServerFaultError("less came than was asked for", key=transfer.key)
                continue
            found.add(digest.found)
            if left:
                transfer.restart()
            else:
                await self._must_mislead(
                    digest, found, info, partial(self._fetch_halves, info, sink, version_id)
                )
        transfer.tell()
        return info

    async def _fetch_halves(
        self, info: ObjectInfo, sink: FileSlice, version_id: VersionId | None
    ) -> str:
        """The MD5 of an object that is fetched in two ranges."""
        for half in _halves(info.size, sink.sums_shift if sink.sums_offset else 0):
            place = msgspec.structs.replace(
                sink, offset=sink.offset + half.start, length=half.length
            )
            await self.fetch(info.key, half, place, version_id, info.etag, None)
        return (await trio.to_thread.run_sync(md5, sink)).hex()

    async def list_page(
        self,
        prefix: str,
        delimiter: str | None,
        token: str | None,
        start_after: str | None,
        max_keys: int,
    ) -> ListPage:
        """See ``Store.list_page``."""
        if prefix:
            check_key(prefix)
        asked = prefix
        if self._http.is_express:
            if start_after:
                raise RejectedError("a directory bucket lists from its beginning only", key=prefix)
            asked = folder_of(prefix)
        wanted = [("list-type", "2"), ("max-keys", str(max_keys))]
        wanted.extend(
            (name, value)
            for name, value in (
                ("prefix", asked),
                ("delimiter", delimiter),
                ("continuation-token", token),
                ("start-after", start_after),
            )
            if value
        )
        chain = (prefix, delimiter or "")

        def parse(body: bytes) -> ListPage:
            return self._following.checked(parse_list(body), chain, token)

        _, page = await self._pages.ask(
            "list", wanted, parse, max_keys * LIST_BYTES_PER_KEY, list_names, list_merged
        )
        self._following.note(page, chain, token)
        return page if asked == prefix else _beginning(page, prefix)

    async def check_list(self, prefix: str) -> int:
        """List one key; the store's clock in nanoseconds since the epoch, 0 where it tells none. Raises StoreError."""
        wanted = [("list-type", "2"), ("max-keys", "1")]
        if prefix:
            # A policy may allow no other prefix to be listed.
            wanted.append(("prefix", prefix))
        answer, _ = await self._pages.ask(
            "check_bucket", wanted, parse_list, LIST_BYTES_PER_KEY, list_names, list_merged
        )
        return http_date_ns(answer.headers.get("date", ""))


def _beginning(page: ListPage, prefix: str) -> ListPage:
    """What of ``page`` begins with ``prefix``."""
    objects = tuple(info for info in page.objects if info.key.startswith(prefix))
    prefixes = tuple(each for each in page.prefixes if each.startswith(prefix))
    return ListPage(objects, prefixes, page.next_token)


class _Fetch:
    """One fetch under way: how far it is, and what pins it to one version."""

    def __init__(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        fd: int,
        version_id: VersionId | None,
        if_match: ETag | None,
        on_progress: Callable[[int], None] | None,
        expected: Callable[[Mapping[str, str]], RunningDigest | None],
    ) -> None:
        self._expected = expected
        self.key = key
        self._range = byte_range
        self._sink = sink
        self._fd = fd
        self._pin = if_match
        self._version_id = version_id
        self._on_progress = on_progress
        self._done = 0
        self._told = 0
        self.digest: RunningDigest | None = None
        self._sums = CacheBlockSums(fd, sink) if sink.sums_offset else None
        self.info: ObjectInfo
        self.call = Call(
            "fetch",
            "GET",
            key,
            query=_version_query(version_id),
            headers={"x-amz-checksum-mode": "ENABLED"},
            size_bytes=byte_range.length,
            on_head=self._on_head,
            before_try=self._before_try,
        )
        # What nothing pins may be another object the second time.
        self._is_pinned = if_match is not None or version_id is not None
        self.call.adopt = self._adopt

    @property
    def complete(self) -> bool:
        """Did the whole range arrive?"""
        return self._done == self._range.length

    def restart(self) -> None:
        """Begin again at the range's start."""
        self._done = 0
        self.digest = None
        self._sums = CacheBlockSums(self._fd, self._sink) if self._sink.sums_offset else None

    def _before_try(self) -> None:
        start = self._range.start + self._done
        self.call.headers["range"] = f"bytes={start}-{self._range.stop - 1}"
        self.call.size_bytes = self._range.length - self._done
        self.call.is_hedgeable = self._is_pinned and not self._done
        if self._pin is not None:
            self.call.headers["if-match"] = f'"{self._pin}"'

    def _on_head(self, head: Head) -> Sink:
        start = self._range.start + self._done
        if head.status == 206 or "content-range" in head.headers:
            got, stop, size = _content_range(head.headers.get("content-range", ""), self.key)
        else:
            got, stop = 0, head.length or 0
            size = stop
        if stop < self._range.stop and got == start:
            raise RangeError("the object ends inside the range", key=self.key, status=416)
        if (got, stop) != (start, self._range.stop):
            raise ServerFaultError("the store sent another range than was asked for", key=self.key)
        if head.length not in (None, stop - start):
            # What is announced for the range does not come, or comes and more.
            raise ServerFaultError("the answer's length is not the range's", key=self.key)
        self.info = object_info(self.key, head.headers, size)
        _must_be_version(head.headers, self._version_id, self.key)
        if self._pin is not None and self.info.etag != self._pin:
            raise PreconditionFailedError("the object was replaced", key=self.key, status=412)
        self._pin = self.info.etag or None
        if not self._done and size == self._range.length:
            self.digest = self._expected(head.headers)
        into_file = file_sink(
            self._fd, self._sink.offset + self._done, self._sink.path, self._on_bytes
        )
        digest = self.digest

        def write(piece: memoryview) -> None:
            if self._done + len(piece) > self._range.length:
                raise ServerFaultError("more bytes came than were asked for", key=self.key)
            if self._sums is not None:
                try:
                    self._sums.update(piece)
                except OSError as error:
                    raise local_failure(self._sink.path, error) from error
            into_file(piece)

        if digest is None:
            return write

        def write_and_check(piece: memoryview) -> None:
            write(piece)
            digest.update(piece)

        return write_and_check

    def _adopt(self, answer: Answer) -> None:
        """Take an answer that came whole while this one was under way: nobody else writes any more."""
        self.restart()
        head = Head()
        head.status, head.headers = answer.status, dict(answer.headers)
        self._on_head(head)(memoryview(answer.body))

    def _on_bytes(self, n: int) -> None:
        self._done += n
        if self.digest is None:
            self.tell()

    def tell(self) -> None:
        """Report how far it is; of what a digest is told, only at its end, as bytes before it may be wrong."""
        if self._on_progress is not None and self._done > self._told:
            self._told = self._done
            self._on_progress(self._done)


def _halves(size: int, shift: int = 0) -> list[ByteRange]:
    """An object in two ranges, parted at a multiple of ``1 << shift``; in one where it is too small for that."""
    middle = size // 2 >> shift << shift
    return [
        ByteRange(start, stop - start)
        for start, stop in ((0, middle), (middle, size))
        if stop > start
    ]


def _version_query(version_id: VersionId | None) -> str:
    return canonical_query([("versionId", version_id)]) if version_id else ""


def _must_be_version(headers: Mapping[str, str], version_id: VersionId | None, key: Key) -> None:
    """Raises ServerFaultError when an answer names another version than was asked for."""
    told = headers.get("x-amz-version-id")
    if version_id is not None and told is not None and told != version_id:
        raise ServerFaultError("the store sent another version than was asked for", key=key)


def content_length(answer: Answer) -> int:
    """How long the body is that an answer to HEAD has not. Raises ServerFaultError."""
    size = whole_number(answer.headers.get("content-length", ""))
    if size is None:
        raise ServerFaultError("an answer to HEAD without a size")
    return size


def _check_head(head: Head, key: Key) -> None:
    """Before a body is received into memory: is it small, and as long as its range?"""
    length = head.length
    if length is None:
        return
    if length > INLINE_BODY_BYTES_MAX:
        raise RejectedError(f"{length} bytes are too many to get into memory", key=key)
    if head.status == 206 or "content-range" in head.headers:
        start, stop, _ = _content_range(head.headers.get("content-range", ""), key)
        if length != stop - start:
            raise ServerFaultError("the answer's length is not the range's", key=key)


def _content_range(value: str, key: Key) -> tuple[int, int, int]:
    """Start, stop and the whole's size of a Content-Range."""
    match = _CONTENT_RANGE.match(value)
    if match is None:
        raise ServerFaultError(f"{value!r} is no range", key=key)
    return int(match[1]), int(match[2]) + 1, int(match[3])
