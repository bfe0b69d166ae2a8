"""Members of packs as files or objects of their own, each held to its digest: ``s3mount pack unpack``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from typing import BinaryIO

import trio

from s3mount.bulk.location import LocalPath, S3Location
from s3mount.bulk.packs.members import Sink, Span, read_spans
from s3mount.bulk.packs.named import loaded_packs
from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.running import FATAL
from s3mount.bulk.sources import from_file, upload_stream
from s3mount.checkout.paths import permissions, refusal
from s3mount.errors import (
    ChecksumError,
    DestinationError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3MountError,
    SourceError,
)
from s3mount.flow.parts import PartPlan
from s3mount.pack.entry import Entry
from s3mount.pack.finding import Alive, Loaded, alive
from s3mount.patterns import PathFilter
from s3mount.refs import ObjectHeaders
from s3mount.s3.store import Store
from s3mount.tasks import first_error
from s3mount.transfer.download import new_file
from s3mount.transfer.partial import set_attributes
from s3mount.transfer.scratch import temporary
from s3mount.tree.attributes import content_type_of

OPERATION = "pack unpack"
PART_BYTES = 8 << 20
UPLOADS_AT_ONCE = 16
ROUNDS_MAX = 5
"""So often packs are asked for again that were compacted meanwhile."""


class Unpacking:
    """Unpacks what lies at ``location`` of ``store`` to ``to``, which is in ``target`` where it is in S3."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        report: Report,
        to: S3Location | LocalPath,
        target: Store | None,
    ) -> None:
        self._store = store
        self._location = location
        self._report = report
        self._to = to
        self._target = target
        self._uploads = trio.CapacityLimiter(UPLOADS_AT_ONCE)
        self._done: set[str] = set()
        self._folders: set[str] = set()

    async def run(self, *, names: Sequence[str], takes: PathFilter) -> None:
        """Unpack the names that are given, or all that ``takes`` leaves. Failures of single ones are reported.

        A pack that another command compacts meanwhile is looked for again. Raises what all would meet.
        """
        base = self._location.base
        wanted = {base + name for name in names}
        for number in range(ROUNDS_MAX):
            packs = await loaded_packs(self._store, self._location, self._report, OPERATION)
            todo = [
                found
                for found in alive(packs)
                if found.key not in self._done
                and (found.key in wanted if wanted else takes(found.key[len(base) :]))
            ]
            if number == 0:
                self._report.expect(len(todo), sum(found.entry.size for found in todo))
            if not await self._round(todo):
                break
        self._report.all_known()
        for key in sorted(wanted - self._done):
            error = SourceError(f"no pack at {self._location.url} has it")
            self._report.fail(OPERATION, key[len(base) :], None, error)

    async def _round(self, todo: Sequence[Alive]) -> bool:
        """Unpack these; were there packs that are gone by now?"""
        by_pack: dict[str, list[Alive]] = {}
        for found in todo:
            by_pack.setdefault(found.loaded.pack.tar.key, []).append(found)
        has_gone = False
        with first_error():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for members in by_pack.values():
                    has_gone |= await self._pack(members[0].loaded, members)
        return has_gone

    async def _pack(self, loaded: Loaded, members: Sequence[Alive]) -> bool:
        """Unpack members of one pack; is it gone?"""
        spans = []
        for number, found in enumerate(members):
            if (why := self._why_not(found)) is not None:
                self._tell(found, DestinationError(why))
            elif found.entry.kind != "file":
                self._other(found)
            elif not found.entry.size:
                await self._sink(found).end()
            else:
                spans.append(Span(found.entry.body, found.entry.size, number))
        try:
            await read_spans(
                self._store, loaded.ref, spans, lambda span: self._sink(members[span.position])
            )
        except (NoSuchKeyError, PreconditionFailedError):
            return True
        except S3MountError as error:
            if isinstance(error, FATAL):
                raise
            for span in spans:
                if members[span.position].key not in self._done:
                    self._tell(members[span.position], error)
        return False

    def _name(self, found: Alive) -> str:
        return found.key[len(self._location.base) :]

    def _why_not(self, found: Alive) -> str | None:
        return refusal(self._name(found)) if isinstance(self._to, LocalPath) else None

    def _place(self, found: Alive) -> str:
        if isinstance(self._to, LocalPath):
            return os.path.join(self._to.path, self._name(found))
        return self._to.at(self._name(found)).url

    def _sink(self, found: Alive) -> Sink:
        if isinstance(self._to, LocalPath):
            return _FileSink(self, found, self._place(found))
        return _ObjectSink(self, found)

    def _other(self, found: Alive) -> None:
        """A folder, or a link: no object, and on the disk no link to wherever somebody else says."""
        if found.entry.kind == "folder" and isinstance(self._to, LocalPath):
            try:
                self.make_folder(self._place(found))
            except DestinationError as error:
                self._tell(found, error)
                return
            self._tell(found, None)
            return
        self._tell(found, None, skipped=f"it is a {found.entry.kind}")

    def make_folder(self, path: str) -> None:
        """Make a folder that is not there. Raises DestinationError."""
        if path in self._folders or not path:
            return
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise DestinationError(f"{path}: {error.strerror}") from error
        self._folders.add(path)

    def _tell(
        self, found: Alive, error: S3MountError | None, *, skipped: str | None = None
    ) -> None:
        self._done.add(found.key)
        source = S3Location(self._location.bucket, found.key).url
        if error is not None:
            self._report.fail(OPERATION, source, self._place(found), error)
            return
        outcome = Outcome(
            operation=OPERATION,
            success=True,
            source=source,
            destination=self._place(found),
            bytes=found.entry.size,
            seconds=round(time.monotonic() - self._report.counts.began_s, 6),
            skipped=skipped,
        )
        self._report.take(outcome)

    def arrived(self, found: Alive, failure: S3MountError | None) -> None:
        """A member is where it shall be, or has failed. Raises ``failure`` where all others would meet it."""
        if isinstance(failure, FATAL):
            raise failure
        if failure is None:
            self._report.moved(found.entry.size)
        self._tell(found, failure)

    async def send(self, found: Alive, file: BinaryIO) -> None:
        """Put a member that lies in a file without a name, while the next ones come."""
        self._done.add(found.key)
        # Held until it is sent: so many such files there are.
        await self._uploads.acquire_on_behalf_of(file)
        self._nursery.start_soon(self._send, found, file)

    async def _send(self, found: Alive, file: BinaryIO) -> None:
        assert isinstance(self._to, S3Location)
        assert self._target is not None
        failure: S3MountError | None = None
        try:
            with file:
                file.seek(0)
                await upload_stream(
                    self._target,
                    from_file(file),
                    self._to.at(self._name(found)).key,
                    _headers(found.entry),
                    plan=PartPlan(PART_BYTES),
                    slots=trio.CapacityLimiter(4),
                    on_sent=lambda n: None,
                )
        except S3MountError as error:
            failure = error
        finally:
            self._uploads.release_on_behalf_of(file)
        self.arrived(found, failure)


class _Checked:
    """Holds what comes to the digest that the index has, if it has one."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._digest = hashlib.sha256() if entry.sha256 else None

    def update(self, data: memoryview) -> None:
        """The next bytes."""
        if self._digest is not None:
            self._digest.update(data)

    def check(self) -> None:
        """Raises ChecksumError."""
        if self._digest is not None and self._digest.hexdigest() != self._entry.sha256:
            raise ChecksumError("its bytes are not those that the index tells of")


class _FileSink:
    """A member to a file, which has its name only when it is whole."""

    def __init__(self, owner: Unpacking, found: Alive, path: str) -> None:
        self._owner = owner
        self._found = found
        self._checked = _Checked(found.entry)
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._failure: S3MountError | None = None
        try:
            owner.make_folder(os.path.dirname(path))
            if os.path.isdir(path):
                raise DestinationError(f"{path} is a folder")
            self._file = self._stack.enter_context(new_file(path, replace=True))
        except S3MountError as error:
            self._failure = error

    def write(self, data: memoryview) -> None:
        """See ``Sink.write``."""
        if self._failure is not None or self._file is None:
            return
        self._checked.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._fail(LocalDiskError(f"it cannot be written: {error.strerror}"))

    async def end(self) -> None:
        """See ``Sink.end``."""
        await trio.lowlevel.checkpoint()
        if self._failure is None and self._file is not None:
            entry = self._found.entry
            try:
                self._checked.check()
                self._file.flush()
                mode = permissions(entry.permissions)
                set_attributes(self._file.fileno(), mode, entry.mtime_ns)
                self._stack.close()
            except S3MountError as error:
                self._fail(error)
            except OSError as error:
                self._fail(LocalDiskError(f"it cannot be written: {error.strerror}"))
        self._owner.arrived(self._found, self._failure)

    def _fail(self, error: S3MountError) -> None:
        self._failure = error
        with contextlib.suppress(S3MountError, OSError):
            # Ends as the block of ``new_file`` does by an error: nothing gets the name.
            self._stack.__exit__(type(error), error, None)

    def drop(self) -> None:
        """See ``Sink.drop``."""
        self._fail(ChecksumError("it is not whole"))


class _ObjectSink:
    """A member to an object of its own."""

    def __init__(self, owner: Unpacking, found: Alive) -> None:
        self._owner = owner
        self._found = found
        self._checked = _Checked(found.entry)
        self._file = temporary()
        self._failure: S3MountError | None = None

    def write(self, data: memoryview) -> None:
        """See ``Sink.write``."""
        self._checked.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._failure = LocalDiskError(f"a temporary file cannot be written: {error.strerror}")

    async def end(self) -> None:
        """See ``Sink.end``."""
        await trio.lowlevel.checkpoint()
        try:
            self._checked.check()
        except ChecksumError as error:
            self._failure = error
        if self._failure is None:
            await self._owner.send(self._found, self._file)
            return
        self.drop()
        self._owner.arrived(self._found, self._failure)

    def drop(self) -> None:
        """See ``Sink.drop``."""
        with contextlib.suppress(OSError):
            self._file.close()


def _headers(entry: Entry) -> ObjectHeaders:
    """What a member keeps as an object: its permissions and time, as the mount and others read them."""
    metadata = {}
    if (mode := permissions(entry.permissions)) is not None:
        metadata["mode"] = str(stat.S_IFREG | mode)
    if entry.mtime:
        metadata["mtime"] = entry.mtime
    return ObjectHeaders(content_type=content_type_of(entry.name), metadata=metadata)
