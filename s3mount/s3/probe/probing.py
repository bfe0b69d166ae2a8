"""What does this store honour? Found out by trying, under temporary keys that are removed again.

Stores differ where it matters most: some take every conditional write (in a versioned bucket, or
always), some refuse conditions that hold, want If-Match without its quotes, or ignore checksum headers.
Each aspect is tried both ways, with what must be taken and with what must be refused, on keys of its
own, all at once: about eight round trips together, while the mount serves. Where nothing can be removed
again, as in a bucket with retention, only one key is written.
"""

from __future__ import annotations

import base64
import enum
import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    NoSuchBucketError,
    NoSuchKeyError,
    NotS3Error,
    PreconditionFailedError,
    RejectedError,
    StoreError,
    WrongRegionError,
)
from s3mount.refs import (
    ByteRange,
    Capabilities,
    Condition,
    ContentRef,
    Key,
    ObjectHeaders,
    PartInfo,
    PutResult,
)
from s3mount.s3 import checksums
from s3mount.s3.calls.express import Express
from s3mount.s3.calls.multipart import COMPLETE, Multipart
from s3mount.s3.calls.writing import COPY_SOURCE, NO_ETAG, Writer, condition_name
from s3mount.s3.checksums import etag_is_md5, md5
from s3mount.s3.headers import TAGGING, bare_etag, http_date_ns
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Answer, Call
from s3mount.s3.http.signing import UNSIGNED_PAYLOAD
from s3mount.s3.probe.trials import CLEAN_UP_S, Trials
from s3mount.s3.traits import Traits

_log = logging.getLogger(__name__)

RACERS = 8
_BODY = b"s3mount tries what this store honours; to be deleted"
_CHECKSUMS = ("crc64nvme", "crc32c", "crc32")
_CONTENT_MD5 = "content-md5"
_NO_WAY = (AccessDeniedError, NoSuchBucketError, NotS3Error, WrongRegionError)
_MARK = "x-amz-meta-mode"
_IF_ABSENT = {"if-none-match": "*"}
_CHECKSUMMED = {
    "x-amz-checksum-algorithm": "CRC64NVME",
    "x-amz-checksum-type": "FULL_OBJECT",
}


class Outcome(enum.Enum):
    """What became of a conditional request."""

    DONE = "it took effect"
    REFUSED = "412: the condition does not hold"
    UNKNOWN = "refused as a request that the store does not know (501, 400)"


class Prober:
    """One run of the probe; what it finds goes into ``traits`` as well."""

    def __init__(
        self, http: HttpClient, writer: Writer, multipart: Multipart, traits: Traits, trials: Trials
    ) -> None:
        self._http = http
        self._writer = writer
        self._multipart = multipart
        self._traits = traits
        self._trials = trials
        self._checksum: str | None = None
        self._atomic: dict[str, bool] = {}
        self._part_copies: bool | None = None
        self._markers: bool | None = None
        self._marker_metadata: bool | None = None
        self._reasons: dict[str, str] = {}
        self._may_write: bool | None = None
        self._renames: bool | None = None
        self._appends: bool | None = None
        self.express: Express | None = None
        """Set for a directory bucket: then what only those have is tried, and not what they never have."""

    async def run(self, killed: Key = "") -> Capabilities:
        """Try everything, and remove what earlier runs left, as ``Store.probe`` says. Never raises a StoreError."""
        aspects: dict[str, Callable[[Key], Awaitable[None]]] = {
            "if-match": self._try_if_match,
            "if-absent": self._try_if_absent,
            "complete": self._try_complete,
            "copy": self._try_copy,
            "copy-source": self._try_copy_source,
            "delete": self._try_delete,
            "checksum": self._try_checksums,
            "marker": self._try_marker,
            "versions": self._try_versions,
            "tags": self._try_tags,
        }
        if self.express is not None:
            del aspects["versions"], aspects["tags"]
            aspects |= {"rename": self._try_rename, "append": self._try_append}
        try:
            if await self._can_remove(killed):
                async with trio.open_nursery() as nursery:
                    for name, aspect in aspects.items():
                        nursery.start_soon(self._try, name, aspect)
        finally:
            await self._trials.remove_all()
        traits = self._traits
        traits.atomic = all(self._atomic.values()) if self._atomic else None
        return Capabilities(
            if_match=traits.if_match,
            if_absent=traits.if_absent,
            complete_condition=traits.complete_condition,
            checksum=self._checksum,
            reason="; ".join(dict.fromkeys(self._reasons.values())),
            copy_condition=traits.copy_condition,
            copy_source_condition=traits.copy_source_condition,
            delete_condition=traits.delete_condition,
            etag_is_md5=traits.etag_is_md5,
            unusable=tuple(sorted(traits.unusable)),
            atomic=traits.atomic,
            content_md5=traits.content_md5,
            copied_checksums=traits.copied_checksums,
            markers=self._markers,
            marker_metadata=self._marker_metadata,
            lists_versions=traits.lists_versions,
            counts_tags=traits.counts_tags,
            part_copies=self._part_copies,
            may_write=self._may_write,
            renames=self._renames,
            appends=self._appends,
        )

    async def _try(self, name: str, aspect: Callable[[Key], Awaitable[None]]) -> None:
        try:
            await aspect(f"{self._trials.key}.{name}")
        except StoreError as error:
            _log.info("%s could not be tried: %s", name, error.describe())
            self._reasons[name] = str(error)

    # -------------------------------------------------------------- is it allowed

    async def _can_remove(self, killed: Key) -> bool:
        """Write and remove one key. Where that is impossible, what one key can show is tried with it."""
        kept: Key | None = None
        try:
            kept = await self._trials.remove_left(killed)
        except StoreError as error:
            _log.info("what earlier probes left is unknown: %s", error.describe())
        key = kept or f"{self._trials.key}.first"
        try:
            if kept is None:
                made = await self._put(key)
                self._may_write = True
                await self._writer.delete(key, made.version_id)
                return True
        except StoreError as error:
            _log.info("whether it can be removed could not be tried: %s", error.describe())
            if isinstance(error, AccessDeniedError) and self._may_write is None and kept is None:
                self._may_write = False
            if not isinstance(error, AccessDeniedError | RejectedError) or not self._trials.count:
                self._reasons["first"] = str(error)
                return False
        self._reasons["first"] = "what is tried here cannot be removed, so that most was not tried"
        await self._try("if-absent", lambda _: self._try_what_one_key_shows(key))
        return False

    async def _try_what_one_key_shows(self, key: Key) -> None:
        """Conditions that must fail: where they do, nothing is written."""
        absent = await self._outcome(self._put(key, _IF_ABSENT))
        self._traits.if_absent = absent is Outcome.REFUSED
        if await self._outcome(self._put(key, {"if-match": f'"{NO_ETAG}"'})) is Outcome.DONE:
            self._traits.if_match = False

    # ----------------------------------------------------------------- requests

    async def _put(self, key: Key, headers: dict[str, str] | None = None) -> PutResult:
        """A bare PUT, with nothing added and nothing believed."""
        call = Call("probe", "PUT", key, headers=headers, body=_BODY, payload_hash=UNSIGNED_PAYLOAD)
        answer = await self._http.call(call)
        version_id = answer.headers.get("x-amz-version-id")
        self._trials.wrote(key, version_id)
        etag = bare_etag(answer.headers.get("etag", ""))
        is_md5 = etag_is_md5(etag, answer.headers) and etag == md5(_BODY).hex()
        self._traits.etag_is_md5 = is_md5
        return PutResult(etag, version_id, http_date_ns(answer.headers.get("date", "")))

    async def _outcome(self, attempt: Awaitable[object]) -> Outcome:
        """What becomes of a request that would be done without its condition. Raises StoreError."""
        try:
            await attempt
        except PreconditionFailedError:
            return Outcome.REFUSED
        except RejectedError as error:
            _log.debug("not understood: %s", error.describe())
            return Outcome.UNKNOWN
        return Outcome.DONE

    def _judge(self, name: str, *, holds: Outcome, fails: Outcome) -> bool:
        """Is a condition honoured, by what became of one that holds and of one that does not?"""
        if holds is not Outcome.DONE or fails is Outcome.UNKNOWN:
            self._traits.unusable.add(name)
            return False
        return fails is Outcome.REFUSED

    async def _race(self, name: str, key: Key, headers: dict[str, str]) -> None:
        """Several conditional PUTs at once, of which one may win."""
        won: list[int] = []

        async def run(number: int) -> None:
            body = _BODY + bytes([number])
            call = Call(
                "probe", "PUT", key, headers=dict(headers), body=body, payload_hash=UNSIGNED_PAYLOAD
            )
            try:
                answer = await self._http.once(call, 0)
            except StoreError as error:
                if error.status == 0 or error.status >= 500:
                    self._trials.wrote(key, None)
                return
            self._trials.wrote(key, answer.headers.get("x-amz-version-id"))
            won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(RACERS):
                nursery.start_soon(run, number)
        if won:
            self._atomic[name] = len(won) == 1

    # ------------------------------------------------------------------ aspects

    async def _try_if_absent(self, key: Key) -> None:
        holds = await self._outcome(self._put(key, _IF_ABSENT))
        if holds is not Outcome.DONE:
            await self._put(key)
        fails = await self._outcome(self._put(key, _IF_ABSENT))
        name = condition_name("PUT", Condition(if_absent=True))
        self._traits.if_absent = self._judge(name, holds=holds, fails=fails)
        if self._traits.if_absent:
            await self._race(name, f"{key}.race", _IF_ABSENT)

    async def _try_if_match(self, key: Key) -> None:
        made = await self._put(key)
        name = condition_name("PUT", Condition(if_match=made.etag))
        for spelt in ('"{}"', "{}"):
            fails = await self._outcome(self._put(key, {"if-match": spelt.format(NO_ETAG)}))
            if fails is Outcome.DONE:
                made = await self._put(key)
            holds = await self._outcome(self._put(key, {"if-match": spelt.format(made.etag)}))
            if holds is not Outcome.REFUSED:
                break
        self._traits.if_match = self._judge(name, holds=holds, fails=fails)
        if self._traits.if_match:
            self._traits.if_match_quoted = spelt == '"{}"'
            made = await self._put(f"{key}.race")
            await self._race(name, f"{key}.race", {"if-match": spelt.format(made.etag)})

    async def _try_complete(self, key: Key) -> None:
        uploads: list[str] = []
        try:
            uploads.append(await self._multipart.create(key, ObjectHeaders()))
            uploads.append(await self._multipart.create(key, ObjectHeaders()))
            parts = [await self._writer.upload_part(key, each, 1, _BODY) for each in uploads]
            first, second = zip(uploads, parts, strict=True)
            holds = await self._outcome(self._complete(key, *first, _IF_ABSENT))
            if holds is not Outcome.DONE:
                await self._put(key)
            fails = await self._outcome(self._complete(key, *second, _IF_ABSENT))
            name = condition_name(COMPLETE, Condition(if_absent=True))
            self._traits.complete_condition = self._judge(name, holds=holds, fails=fails)
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                for upload_id in uploads:
                    await self._abort(key, upload_id)

    async def _complete(
        self, key: Key, upload_id: str, part: PartInfo, headers: dict[str, str]
    ) -> None:
        version_id = await self._multipart.complete_bare(key, upload_id, part, headers)
        self._trials.wrote(key, version_id)

    async def _abort(self, key: Key, upload_id: str) -> None:
        try:
            await self._multipart.abort(key, upload_id)
        except StoreError as error:
            _log.debug("the probe's upload stays behind: %s", error.describe())

    async def _try_copy(self, key: Key) -> None:
        made = await self._put(key)
        source = ContentRef(key, made.etag, len(_BODY), made.version_id)
        to = f"{key}.to"
        holds = await self._outcome(self._copy(source, to, _IF_ABSENT))
        if holds is not Outcome.DONE:
            await self._put(to)
        fails = await self._outcome(self._copy(source, to, _IF_ABSENT))
        name = condition_name("COPY", Condition(if_absent=True))
        is_absent_honoured = self._judge(name, holds=holds, fails=fails)
        there = await self._put(f"{key}.there")
        quoted = '"{}"' if self._traits.if_match_quoted is not False else "{}"
        holds = await self._outcome(
            self._copy(source, f"{key}.there", {"if-match": quoted.format(there.etag)})
        )
        fails = await self._outcome(
            self._copy(source, f"{key}.there", {"if-match": quoted.format(NO_ETAG)})
        )
        name = condition_name("COPY", Condition(if_match=there.etag))
        is_match_honoured = self._judge(name, holds=holds, fails=fails)
        self._traits.copy_condition = is_absent_honoured and is_match_honoured

    async def _try_copy_source(self, key: Key) -> None:
        made = await self._put(key)
        source = ContentRef(key, made.etag, len(_BODY))
        guard = "x-amz-copy-source-if-match"
        holds = await self._outcome(self._copy(source, f"{key}.to", {guard: f'"{made.etag}"'}))
        fails = await self._outcome(self._copy(source, f"{key}.to", {guard: f'"{NO_ETAG}"'}))
        self._traits.copy_source_condition = self._judge(COPY_SOURCE, holds=holds, fails=fails)

    async def _try_rename(self, key: Key) -> None:
        """Does RenameObject move an object with all that it has, and only where its conditions hold?"""
        assert self.express is not None
        rename = self.express.rename
        made, there = await self._put(key, {_MARK: "33188"}), await self._put(f"{key}.there")
        source = ContentRef(key, made.etag, len(_BODY))
        other = ContentRef(key, NO_ETAG, len(_BODY))
        self._trials.wrote(f"{key}.to", None)
        outcomes = [
            await self._outcome(rename(other, f"{key}.to", Condition(if_absent=True))),
            await self._outcome(rename(source, f"{key}.there", Condition(if_absent=True))),
            await self._outcome(rename(source, f"{key}.there", Condition(if_match=NO_ETAG))),
        ]
        if any(outcome is not Outcome.REFUSED for outcome in outcomes):
            self._renames = False
            return
        await rename(source, f"{key}.to", Condition(if_absent=True))
        moved = ContentRef(f"{key}.to", made.etag, len(_BODY))
        await rename(moved, f"{key}.there", Condition(if_match=there.etag))
        told = (await self._once("HEAD", f"{key}.there")).headers
        is_moved = bare_etag(told.get("etag", "")) == made.etag and _MARK in told
        self._renames = is_moved and await self._is_missing(key)

    async def _try_append(self, key: Key) -> None:
        """Does a PutObject with a write offset add to an object and keep what is stored with it?"""
        assert self.express is not None
        append = self.express.append
        made = await self._put(
            key, {_MARK: "33188", checksums.CRC_HEADER: checksums.crc64nvme(_BODY)}
        )
        base = ContentRef(key, made.etag, len(_BODY))
        outcomes = [
            await self._outcome(append(ContentRef(key, made.etag, len(_BODY) + 1), _BODY)),
            await self._outcome(append(ContentRef(key, NO_ETAG, len(_BODY)), _BODY)),
        ]
        if any(outcome is not Outcome.REFUSED for outcome in outcomes):
            self._appends = False
            return
        made = await append(base, _BODY)
        read = await self._http.call(Call("get", "GET", key))
        is_told = bare_etag(read.headers.get("etag", "")) == made.etag and _MARK in read.headers
        self._appends = is_told and read.body == _BODY + _BODY

    async def _try_delete(self, key: Key) -> None:
        made = await self._put(key)
        fails = await self._outcome(self._delete(key, NO_ETAG))
        honoured = fails is Outcome.REFUSED
        if honoured:
            # One that refuses the true ETag as well is of no use.
            honoured = await self._outcome(self._delete(key, made.etag)) is Outcome.DONE
        self._traits.delete_condition = honoured

    async def _delete(self, key: Key, etag: str) -> None:
        version_id = await self._writer.delete_bare(key, f'"{etag}"')
        if version_id is not None:
            self._trials.wrote(key, version_id)

    async def _copy(self, source: ContentRef, key: Key, headers: dict[str, str]) -> None:
        made = await self._writer.copy_bare(source, key, headers)
        self._trials.wrote(key, made.version_id)

    async def _try_checksums(self, key: Key) -> None:
        right = {
            f"x-amz-checksum-{name}": checksums.crc_in_base64(name, _BODY) for name in _CHECKSUMS
        }
        right[_CONTENT_MD5] = base64.b64encode(md5(_BODY)).decode()
        verified: list[str] = []

        async def attempt(header: str, value: str) -> None:
            wrong = base64.b64encode(bytes(len(base64.b64decode(value)))).decode()
            place = f"{key}.{header}"
            try:
                is_wrong_refused = await self._refuses_body(place, {header: wrong})
                if is_wrong_refused and not await self._refuses_body(place, {header: value}):
                    verified.append(header)
            except StoreError as error:
                failures.append(error)

        failures: list[StoreError] = []
        async with trio.open_nursery() as nursery:
            for header, value in right.items():
                nursery.start_soon(attempt, header, value)
        if failures:
            raise failures[0]
        for name in _CHECKSUMS:
            if f"x-amz-checksum-{name}" in verified:
                self._checksum = name
                break
        self._traits.content_md5 = _CONTENT_MD5 in verified
        self._traits.verifies_checksums = self._checksum is not None
        self._traits.echoes_checksums = self._checksum == "crc64nvme"
        await self._try_copied_part(f"{key}.part")

    async def _try_tags(self, key: Key) -> None:
        """Does HEAD tell that an object has tags? Where that may not be tried, tags are asked for when needed."""
        try:
            await self._put(key, {TAGGING: "s3mount=trial"})
        except (AccessDeniedError, RejectedError) as error:
            _log.info("tags could not be tried: %s", error.describe())
            return
        told = (await self._http.call(Call("head", "HEAD", key))).headers
        self._traits.counts_tags = "x-amz-tagging-count" in told

    async def _refuses_body(self, key: Key, headers: dict[str, str]) -> bool:
        """Is a PUT with this digest refused? Raises StoreError where that has nothing to do with it."""
        call = Call("probe", "PUT", key, headers=headers, body=_BODY, payload_hash=UNSIGNED_PAYLOAD)
        try:
            answer = await self._http.once(call, 0)
        except StoreError as error:
            is_fault = error.status == 0 or (error.status >= 500 and error.status != 501)
            if is_fault or isinstance(error, (*_NO_WAY, ArchivedError)):
                raise
            return True
        self._trials.wrote(key, answer.headers.get("x-amz-version-id"))
        return False

    async def _misleads_of_ranges(self, source: ContentRef, upload_id: str) -> bool:
        """Does a part copied from a range get another checksum than its own, such as that of all of the source?

        The whole object would have a wrong one too. Where so short a source is not copied by range (AWS), no.
        """
        head = ByteRange(0, len(_BODY) // 2)
        try:
            part = await self._writer.copy_part_bare(source, source.key, upload_id, head)
        except StoreError as error:
            if isinstance(error, _NO_WAY) or (
                error.status == 0 and not isinstance(error, NotS3Error)
            ):
                raise
            return False
        return part.checksum not in (None, checksums.crc64nvme(_BODY[: head.stop]))

    async def _try_copied_part(self, key: Key) -> None:
        """Does the store copy parts, and may such a part be in an upload with checksums?"""
        made = await self._put(key)
        has_checksums = bool(self._traits.echoes_checksums)
        upload_id = await self._multipart.create_bare(key, _CHECKSUMMED if has_checksums else {})
        try:
            source = ContentRef(key, made.etag, len(_BODY), made.version_id)
            misleads = has_checksums and await self._misleads_of_ranges(source, upload_id)
            part = await self._writer.copy_part_bare(source, key, upload_id)
            self._part_copies = True
            if has_checksums:
                told = part.checksum is not None and not misleads
                part = PartInfo(1, part.etag, part.size, checksums.crc64nvme(_BODY))
                done = await self._outcome(self._complete(key, upload_id, part, {}))
                self._traits.copied_checksums = told and done is Outcome.DONE
        except StoreError as error:
            # rclone answers with nothing at all.
            is_empty = isinstance(error, NotS3Error)
            if not is_empty and (isinstance(error, _NO_WAY) or error.status == 0):
                raise
            _log.info("parts are not copied here: %s", error.describe())
            if self._part_copies:
                self._traits.copied_checksums = False
            else:
                self._part_copies = False
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                await self._abort(key, upload_id)

    async def _try_marker(self, key: Key) -> None:
        """Is a key that ends in a slash an object of its own, and does it keep what is stored with it?"""
        marker = f"{key}/"
        try:
            await self._put_marker(marker)
            # Some stores make a file of it, below which nothing can be written.
            is_file = not await self._is_missing(key)
            self._trials.wrote(f"{marker}below", None)
            await self._once("PUT", f"{marker}below")
            kept = (await self._once("HEAD", marker)).headers
        except StoreError as error:
            if isinstance(error, _NO_WAY) or error.status == 0:
                raise
            _log.info("markers of folders are of no use here: %s", error.describe())
            self._markers = False
            return
        self._markers = not is_file
        self._marker_metadata = _MARK in kept

    async def _once(self, method: str, key: Key) -> Answer:
        """A request that is repeated once: what fails twice fails for good."""
        body = _BODY if method == "PUT" else None
        call = Call("probe", method, key, body=body, payload_hash=UNSIGNED_PAYLOAD)
        try:
            return await self._http.once(call, 0)
        except StoreError as error:
            if not error.retryable:
                raise
        return await self._http.once(call, 1)

    async def _put_marker(self, marker: Key) -> None:
        call = Call(
            "probe",
            "PUT",
            marker,
            headers={_MARK: "16877", "content-type": "application/x-directory"},
            body=b"",
            payload_hash=UNSIGNED_PAYLOAD,
        )
        answer = await self._http.call(call)
        self._trials.wrote(marker, answer.headers.get("x-amz-version-id"))

    async def _is_missing(self, key: Key) -> bool:
        try:
            await self._once("HEAD", key)
        except NoSuchKeyError:
            return True
        return False

    async def _try_versions(self, key: Key) -> None:
        try:
            await self._trials.list_versions(key)
        except RejectedError as error:
            _log.info("versions are not listed: %s", error.describe())
            self._traits.lists_versions = False
        else:
            self._traits.lists_versions = self._traits.lists_versions is not False
