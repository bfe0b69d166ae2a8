"""A bucket in which members of packs look like objects: whoever reads and writes it needs to know nothing of packs."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

import trio

from s3mount.clock import SystemClock, WallClock
from s3mount.errors import (
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    S3MountError,
    StoreError,
)
from s3mount.names import is_trial_key
from s3mount.pack.entry import why_no_name
from s3mount.pack.gathering import Gatherer, Write, files_at_once
from s3mount.pack.keeping import Keeper
from s3mount.pack.reading import MemberReader
from s3mount.pack.shadows import Shadows
from s3mount.pack.union import FOLDER_ETAG, LAST, Member, Union, is_member_etag
from s3mount.refs import (
    ANY,
    Body,
    BucketInfo,
    ByteRange,
    Capabilities,
    Condition,
    ContentRef,
    ETag,
    FileSlice,
    Key,
    ListPage,
    ObjectDigests,
    ObjectHeaders,
    ObjectInfo,
    PartInfo,
    PutResult,
    UploadInfo,
    VersionId,
    VersionPage,
)
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.tasks import first_error
from s3mount.transfer.scratch import scratch

log = logging.getLogger(__name__)

MOVES_MAX = 5
"""So often a member is looked for anew whose pack was compacted just then."""
_OWN = re.compile(r"[0-9]{13}-[0-9a-f]{8}\.tar(\.idx)?")
"""Names of packs: whoever sees what is in them sees them not."""
NOTHING = ObjectHeaders()


class PackedStore:
    """A ``Store``: ``store`` with what the packs directly in its folder ``prefix`` have.

    An object of its own hides a member of the same key. What is known of packs and names is believed for ``ttl_s``;
    a write looks again. With ``lists_folders`` lists have a marker for each folder of members. Bodies of less than
    ``below`` bytes are put into packs, and such as any of ``globs`` fits, up to 1 MiB. ``run`` has to run for that.
    """

    def __init__(
        self,
        store: Store,
        bucket: str,
        prefix: Key,
        *,
        ttl_s: float,
        below: int = 0,
        globs: Sequence[str] = (),
        lists_folders: bool = True,
        clock: WallClock | None = None,
    ) -> None:
        self._lists_folders = lists_folders
        self._store = store
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._below = below
        self._globs = tuple(globs)
        self._union = Union(prefix)
        self._keeper = Keeper(store, bucket, prefix, self._union)
        self._shadows = Shadows(store)
        self._reader = MemberReader(store)
        most = INLINE_BODY_BYTES_MAX if globs else below
        self.files_at_once = files_at_once(most)
        self._gatherer = Gatherer(
            store,
            bucket,
            prefix,
            self._keeper,
            self._union,
            self._shadows.present,
            clock or SystemClock(),
            self.files_at_once,
        )
        self.run = self._gatherer.run

    def tell_of_waiters(self, is_awaited: Callable[[], bool]) -> None:
        """Ask ``is_awaited`` whether somebody waits for S3: else packs are filled for a while."""
        self._gatherer.is_awaited = is_awaited

    # ---------------------------------------------------------------- members

    def packs(self, key: Key, size: int) -> bool:
        """Does what is written under ``key`` go into a pack, as far as its name and size tell?"""
        if not key.startswith(self._prefix) or key.endswith("/") or is_trial_key(key):
            return False
        name = key[len(self._prefix) :]
        if why_no_name(name) is not None or size > INLINE_BODY_BYTES_MAX:
            return False
        return size < self._below or any(fnmatchcase(name, glob) for glob in self._globs)

    async def _member(self, key: Key, ttl_s: float) -> Member | None:
        """The member that is seen under ``key``: none where an object hides it. Raises StoreError."""
        if not key.startswith(self._prefix) or is_trial_key(key):
            return None
        await self._keeper.freshen(ttl_s)
        member = self._union.find(key)
        if member is not None and await self._shadows.find(key, ttl_s) is not None:
            return None
        return member

    async def _content(self, key: Key, etag: ETag) -> Member:
        """Where those bytes of a member lie. Raises PreconditionFailedError."""
        found = self._union.find_content(key, etag)
        if found is None:
            await self._keeper.freshen(0)
            found = self._union.find_content(key, etag)
        if found is None:
            raise PreconditionFailedError("no pack has it any more", key=key)
        return found

    async def _seen(
        self, key: Key, version_id: VersionId | None, if_match: ETag | None, *, is_whole: bool
    ) -> Member | None:
        """Which member a read means; ``None`` where it means an object. Raises PreconditionFailedError."""
        if version_id is not None or (if_match is not None and not is_member_etag(if_match)):
            return None
        if if_match is not None and not is_whole:
            return await self._content(key, if_match)
        member = await self._member(key, self._ttl_s)
        if if_match is not None and (member is None or member.etag != if_match):
            raise PreconditionFailedError("another version is there", key=key)
        return member

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        member = await self._seen(key, version_id, if_match, is_whole=byte_range is None)
        if member is None:
            return await self._store.get(
                key, byte_range=byte_range, version_id=version_id, if_match=if_match
            )
        start, length = _within(member, byte_range)
        if length > INLINE_BODY_BYTES_MAX:
            raise RejectedError(f"{length} bytes are too many to be read at once", key=key)
        for _ in range(MOVES_MAX):
            try:
                return member.info, await self._reader.read(member, start, length)
            except (NoSuchKeyError, PreconditionFailedError):
                member = await self._moved(member)
        raise PreconditionFailedError("its pack is written anew again and again", key=key)

    async def _moved(self, member: Member) -> Member:
        """Where a member lies whose pack is gone. Raises PreconditionFailedError."""
        await self._keeper.freshen(0)
        return await self._content(member.key, member.etag)

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        *,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """See ``Store.fetch``."""
        member = await self._seen(key, version_id, if_match, is_whole=False)
        if member is None:
            return await self._store.fetch(
                key,
                byte_range,
                sink,
                version_id=version_id,
                if_match=if_match,
                on_progress=on_progress,
            )
        if byte_range.stop > member.size or member.entry is None:
            raise RangeError("the member ends before", key=key)
        for _ in range(MOVES_MAX):
            assert member.entry is not None
            pack = member.loaded.ref
            there = ByteRange(member.entry.body + byte_range.start, byte_range.length)
            try:
                await self._store.fetch(
                    pack.key, there, sink, if_match=pack.etag or None, on_progress=on_progress
                )
                return member.info
            except (NoSuchKeyError, PreconditionFailedError):
                member = await self._moved(member)
        raise PreconditionFailedError("its pack is written anew again and again", key=key)

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        member = None if version_id is not None else await self._member(key, self._ttl_s)
        return await self._store.head(key, version_id=version_id) if member is None else member.info

    async def describe(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.describe``."""
        member = None if version_id is not None else await self._member(key, self._ttl_s)
        if member is None:
            return await self._store.describe(key, version_id=version_id)
        return member.info

    async def digests(self, key: Key, *, version_id: VersionId | None = None) -> ObjectDigests:
        """See ``Store.digests``."""
        member = None if version_id is not None else await self._member(key, self._ttl_s)
        if member is None:
            return await self._store.digests(key, version_id=version_id)
        return ObjectDigests(member.size, member.etag, False)

    # ---------------------------------------------------------------- listing

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        """See ``Store.list_page``. A token holds the last key of the page before, and the store's token."""
        await self._keeper.freshen(self._ttl_s)
        asked_at = trio.current_time()
        after, inner = start_after or "", None
        if token is not None:
            after, _, inner = token.partition("\0")
        page = await self._store.list_page(
            prefix,
            delimiter=delimiter,
            token=inner or None,
            start_after=None if inner else (after or None),
            max_keys=max_keys,
        )
        if delimiter == "/":
            self._shadows.note(prefix, after, page, asked_at)
        return self._merged(prefix, delimiter, after, page, max_keys)

    def _merged(
        self, prefix: str, delimiter: str | None, after: Key, page: ListPage, max_keys: int
    ) -> ListPage:
        """What the store's page tells, and members between its first and last key."""
        objects = {info.key: info for info in page.objects}
        found: dict[str, ObjectInfo | None] = {
            key: info for key, info in objects.items() if not self._is_pack(key)
        }
        found |= dict.fromkeys(page.prefixes)
        upto = max(found.keys() | objects.keys(), default="") if page.next_token else None
        is_ordered = self._store.lists_in_order
        # Where keys come in any order members come first, and what hides them later.
        there = self._union.between(prefix, delimiter, after, upto if is_ordered else None)
        for each in there if is_ordered or not after else ():
            if isinstance(each, str):
                found[each] = None
            elif each.key not in objects and (self._lists_folders or each.etag != FOLDER_ETAG):
                found[each.key] = each.listed
        names = sorted(found)
        next_token = None if upto is None else f"{upto or prefix}\0{page.next_token}"
        if len(names) > max_keys and is_ordered:
            names = names[:max_keys]
            last = names[-1]
            # What is below a common prefix is not to come again.
            next_token = f"{last}{LAST if found[last] is None else ''}\0"
        told = [(name, found[name]) for name in names]
        return ListPage(
            tuple(info for _, info in told if info is not None),
            tuple(name for name, info in told if info is None),
            next_token,
        )

    def _is_pack(self, key: Key) -> bool:
        name = key[len(self._prefix) :]
        return key.startswith(self._prefix) and _OWN.fullmatch(name) is not None

    # ---------------------------------------------------------------- writing

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.put``. What goes into a pack is there when the pack and its index are."""
        is_known = condition.if_match is None or is_member_etag(condition.if_match)
        if isinstance(body, bytes) and is_known and self.packs(key, len(body)) and _fits(headers):
            write = Write(key, body, headers, condition)
            await self._gatherer.write(write)
            if write.result is not None:
                return write.result
        condition = await self._of_object(key, condition)
        result = await self._store.put(key, body, headers, condition=condition)
        await self._bury(key)
        return result

    async def _of_object(self, key: Key, condition: Condition) -> Condition:
        """What a write of an object demands where that is to hide a member. Raises PreconditionFailedError."""
        if is_member_etag(condition.if_match):
            member = await self._member(key, 0)
            if member is None or member.etag != condition.if_match:
                raise PreconditionFailedError("another version is there", key=key)
            return Condition(if_absent=True)
        if condition.if_absent:
            member = await self._member(key, self._ttl_s)
            if member is not None and member.etag != FOLDER_ETAG:
                raise PreconditionFailedError("a pack has it", key=key)
        return condition

    async def _bury(self, key: Key) -> None:
        """An object was written: delete what it hides. That is to save room, and may as well be done later."""
        self._shadows.changed(key)
        if not self._is_in_pack(key):
            return
        try:
            await self._gatherer.write(Write(key, None, NOTHING, ANY))
        except S3MountError as error:
            log.info("%r stays in its pack below an object: %s", key, error)

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.copy``. Of a member its bytes are read and put."""
        if source.bucket or not is_member_etag(source.etag):
            condition = await self._of_object(key, condition)
            result = await self._store.copy(source, key, headers, condition=condition)
            await self._bury(key)
            return result
        member = await self._content(source.key, source.etag)
        info = member.info
        kept = info.headers if headers is None else headers
        assert kept is not None
        if member.size <= INLINE_BODY_BYTES_MAX:
            whole = None if not member.size else ByteRange(0, member.size)
            body = b"" if whole is None else await self._bytes(member, whole)
            return await self.put(key, body, kept, condition=condition)
        with scratch() as (file, path):
            file.truncate(member.size)
            there = FileSlice(path, 0, member.size)
            await self.fetch(source.key, ByteRange(0, member.size), there, if_match=source.etag)
            return await self.put(key, there, kept, condition=condition)

    async def _bytes(self, member: Member, byte_range: ByteRange) -> bytes:
        _, body = await self.get(member.key, byte_range=byte_range, if_match=member.etag)
        return body

    async def rename(
        self, source: ContentRef, key: Key, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.rename``."""
        if is_member_etag(source.etag):
            raise RejectedError("a member of a pack cannot be renamed", key=source.key)
        condition = await self._of_object(key, condition)
        result = await self._store.rename(source, key, condition=condition)
        self._shadows.changed(source.key)
        await self._bury(key)
        return result

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """See ``Store.append``."""
        if is_member_etag(base.etag):
            raise RejectedError("nothing is appended to a member of a pack", key=base.key)
        return await self._store.append(base, body)

    async def delete(
        self, key: Key, *, version_id: VersionId | None = None, if_match: ETag | None = None
    ) -> None:
        """See ``Store.delete``. A member is deleted by a tombstone."""
        if version_id is not None or not self._may_be_member(key):
            await self._store.delete(key, version_id=version_id, if_match=if_match)
            return
        await self._keeper.freshen(self._ttl_s)
        is_of_member = is_member_etag(if_match)
        if is_of_member and key.endswith("/") and not self._is_in_pack(key):
            # Only what is below it told of the folder.
            return
        if is_of_member or self._is_in_pack(key):
            wanted = Condition(if_match=if_match) if is_of_member else ANY
            write = Write(key, None, NOTHING, wanted)
            await self._gatherer.write(write)
            if is_of_member or not write.is_plain:
                return
        await self._store.delete(key, if_match=if_match)
        self._shadows.changed(key)

    def _is_in_pack(self, key: Key) -> bool:
        """Does a pack have an entry of it, as far as is known?"""
        member = self._union.find(key)
        return member is not None and member.entry is not None

    def _may_be_member(self, key: Key) -> bool:
        return key.startswith(self._prefix) and not is_trial_key(key)

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        """See ``Store.delete_many``."""
        if any(version_ids):
            return await self._store.delete_many(keys, version_ids=version_ids)
        await self._keeper.freshen(self._ttl_s)
        members = [key for key in keys if self._may_be_member(key) and self._is_in_pack(key)]
        errors: dict[Key, StoreError | None] = dict.fromkeys(keys)
        hidden: set[Key] = set()

        async def one(key: Key) -> None:
            write = Write(key, None, NOTHING, ANY)
            try:
                await self._gatherer.write(write)
            except StoreError as error:
                errors[key] = error
            if write.is_plain:
                hidden.add(key)

        async with trio.open_nursery() as nursery:
            for key in members:
                nursery.start_soon(one, key)
        there = set(members) - hidden
        rest = [key for key in keys if key not in there and errors[key] is None]
        if rest:
            told = await self._store.delete_many(rest)
            errors.update(zip(rest, told, strict=True))
            for key in rest:
                self._shadows.changed(key)
        return [errors[key] for key in keys]

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """See ``Store.upload_part_copy``. S3 copies a part of a pack as of any object."""
        if not source.bucket and is_member_etag(source.etag):
            member = await self._content(source.key, source.etag)
            assert member.entry is not None
            start = member.entry.body + byte_range.start
            source, byte_range = member.loaded.ref, ByteRange(start, byte_range.length)
        return await self._store.upload_part_copy(key, upload_id, number, source, byte_range)

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.complete_multipart``."""
        condition = await self._of_object(key, condition)
        result = await self._store.complete_multipart(key, upload_id, parts, condition=condition)
        await self._bury(key)
        return result

    async def put_tags(self, key: Key, tags: str, *, version_id: VersionId | None = None) -> None:
        """See ``Store.put_tags``. Raises RejectedError for a member, which has none."""
        if version_id is None and await self._member(key, self._ttl_s) is not None:
            raise RejectedError("a member of a pack has no tags", key=key)
        await self._store.put_tags(key, tags, version_id=version_id)

    # ------------------------------------------------- what packs do not matter to

    @property
    def on_outage(self) -> Callable[[str], None]:
        """See ``Store.on_outage``."""
        return self._store.on_outage

    @on_outage.setter
    def on_outage(self, told: Callable[[str], None]) -> None:
        self._store.on_outage = told

    @property
    def outage(self) -> str:
        """See ``Store.outage``."""
        return self._store.outage

    @property
    def lists_in_order(self) -> bool:
        """See ``Store.lists_in_order``."""
        return self._store.lists_in_order

    async def renew_credentials(self) -> None:
        """See ``Store.renew_credentials``."""
        await self._store.renew_credentials()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``."""
        await self._store.set_rates(up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """See ``Store.set_log_level``."""
        await self._store.set_log_level(level)

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """See ``Store.list_versions_page``: packs are listed as the objects that they are."""
        return await self._store.list_versions_page(
            prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            version_marker=version_marker,
            max_keys=max_keys,
        )

    async def create_multipart(
        self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False
    ) -> str:
        """See ``Store.create_multipart``."""
        return await self._store.create_multipart(key, headers, has_copies=has_copies)

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """See ``Store.upload_part``."""
        return await self._store.upload_part(key, upload_id, number, body)

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """See ``Store.abort_multipart``."""
        await self._store.abort_multipart(key, upload_id)

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """See ``Store.list_parts``."""
        return await self._store.list_parts(key, upload_id)

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """See ``Store.list_uploads``."""
        return await self._store.list_uploads(prefix)

    async def may_write(self, temporary_key: Key) -> bool | None:
        """See ``Store.may_write``."""
        return await self._store.may_write(temporary_key)

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        """See ``Store.check_bucket``."""
        return await self._store.check_bucket(prefix)

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``."""
        return await self._store.noncurrent_rule(prefix)

    async def probe(
        self, temporary_key: Key, *, known: Capabilities | None = None, killed: Key = ""
    ) -> Capabilities:
        """See ``Store.probe``."""
        return await self._store.probe(temporary_key, known=known, killed=killed)

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``."""
        return await self._store.try_version_dates(temporary_key)

    async def statistics(self) -> dict[str, float]:
        """See ``Store.statistics``."""
        return await self._store.statistics()


@asynccontextmanager
async def open_packed(
    store: Store, bucket: str, prefix: Key, **how: Any
) -> AsyncIterator[PackedStore]:
    """A ``PackedStore`` within the block, with its arguments. Raises what the block raises, as it is."""
    packed = PackedStore(store, bucket, prefix, **how)
    with first_error():
        async with trio.open_nursery() as nursery:
            await nursery.start(packed.run)
            yield packed
            nursery.cancel_scope.cancel()


def _within(member: Member, byte_range: ByteRange | None) -> tuple[int, int]:
    """The bytes that a read means. Raises RangeError."""
    if byte_range is None:
        return 0, member.size
    if byte_range.start >= member.size:
        raise RangeError("the member ends before", key=member.key)
    return byte_range.start, min(byte_range.length, member.size - byte_range.start)


def _fits(headers: ObjectHeaders) -> bool:
    """Can a member carry all of it, and is it a file?"""
    carried = ObjectHeaders(headers.metadata, content_type=headers.content_type)
    mode = headers.metadata.get("mode", "")
    is_file = not (mode.isascii() and mode.isdecimal()) or stat.S_ISREG(int(mode))
    return headers == carried and is_file
