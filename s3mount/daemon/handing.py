"""What ``send`` does with each file that ``bulk.copying`` finds: hand it over instead of moving it."""

from __future__ import annotations

import os
import stat

from s3mount.bulk.location import S3Location
from s3mount.bulk.report import Report
from s3mount.bulk.running import Done, Session
from s3mount.bulk.sources import Read
from s3mount.bulk.transfers import How, Transfers
from s3mount.config import StoreConfig, default_state_dir
from s3mount.daemon.handover import Stored, Taken
from s3mount.daemon.send_client import SendClient
from s3mount.errors import SourceError

STDIN = 0


class Handing(Transfers):
    """Transfers that a daemon makes. ``deletes_source`` deletes each file that arrived, unless it was changed."""

    def __init__(
        self,
        client: SendClient,
        session: Session,
        report: Report,
        *,
        wait: bool,
        by_reference: bool,
        deletes_source: bool,
    ) -> None:
        how = How(ledgers=default_state_dir(), deletes_source=deletes_source)
        super().__init__(session, report, StoreConfig(bucket=""), how)
        self._client = client
        self._wait = wait
        self._by_reference = by_reference
        self._deletes_source = deletes_source
        self._moved = report.moved

    async def up(self, path: str, to: S3Location) -> Done:
        """Hand a local file over. Raises SourceError, and as ``SendClient.hand``."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(str(error.strerror)) from error
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                is_folder = stat.S_ISDIR(about.st_mode)
                what = "it is a folder, which needs -r" if is_folder else "it is no regular file"
                raise SourceError(what)
            answer = await self._client.hand(
                fd, to.bucket, to.key, wait=self._wait, by_reference=self._by_reference
            )
            self._moved(answer.size_bytes)
            if self._deletes_source:
                _delete(path, fd, about)
        finally:
            os.close(fd)
        return _done(answer)

    async def up_from(self, read: Read, to: S3Location) -> Done:
        """Hand standard input over. Raises as ``SendClient.hand_stream``, and SourceError."""
        about = os.fstat(STDIN)
        if not stat.S_ISREG(about.st_mode):
            answer = await self._client.hand_stream(STDIN, to.bucket, to.key, wait=self._wait)
        elif os.lseek(STDIN, 0, os.SEEK_CUR):
            raise SourceError("standard input is a file that was read in part: name it, or pipe it")
        else:
            answer = await self._client.hand(STDIN, to.bucket, to.key, wait=self._wait)
        self._moved(answer.size_bytes)
        return _done(answer)


def _done(answer: Stored | Taken) -> Done:
    return Done(answer.size_bytes, answer.version_id if isinstance(answer, Stored) else None)


def _delete(path: str, fd: int, before: os.stat_result) -> None:
    """Delete the file that was handed over, and no other that has its name by now. Raises SourceError."""
    try:
        now, there = os.fstat(fd), os.stat(path)
        is_same = (there.st_dev, there.st_ino) == (before.st_dev, before.st_ino)
        if not is_same or (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise SourceError("it was changed after it was handed over, and stays")
        os.unlink(path)
    except OSError as error:
        raise SourceError(f"it is sent and cannot be removed: {error.strerror}") from error
