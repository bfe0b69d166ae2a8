"""Sources at ftp:// URLs: in parallel ranges, a control connection each, where the server can begin anywhere.

``ftplib`` blocks, and runs in threads.
"""

from __future__ import annotations

import contextlib
import ftplib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import trio

from s3mount.bulk.ranged import RangedSource, Write
from s3mount.bulk.sources import READ_BYTES, Read
from s3mount.errors import SourceError
from s3mount.flow.backoff import Backoff
from s3mount.refs import ByteRange

TRIES_MAX = 6
"""So often in a row nothing may come of a range before it is given up."""
TIMEOUT_S = 30.0
_BROKEN = (OSError, EOFError, ftplib.error_temp, ftplib.error_proto)
T = TypeVar("T")


class _Transfer:
    """A file being sent, from some byte on. Its methods block."""

    def __init__(self, url: str, start: int) -> None:
        self._ftp = _connected(url)
        try:
            self._data = self._ftp.transfercmd(f"RETR {_path_of(url)}", rest=start or None)
        except BaseException:
            self._ftp.close()
            raise

    def read(self, most: int) -> bytes:
        """The next bytes, none at the end."""
        return self._data.recv(most)

    def finish(self) -> None:
        """Hear from the server whether that was all. Raises ftplib's errors."""
        self._data.close()
        self._ftp.voidresp()

    def close(self) -> None:
        """Break off."""
        with contextlib.suppress(OSError):
            # Also wakes a thread that still reads.
            self._data.shutdown(socket.SHUT_RDWR)
        self._data.close()
        self._ftp.close()


class FtpSource(RangedSource):
    """See ``ranged.RangedSource``: a file whose server tells its size and begins at any byte."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def look(self) -> bool:
        """Ask what there is; can it be read from any byte on? Raises SourceError."""
        found = await _tried(lambda: _looked_at(self._url))
        if found is None:
            return False
        self.size, self.validator = found
        return True

    async def fetch(self, span: ByteRange, write: Write) -> None:
        """See ``RangedSource.fetch``."""
        done, fruitless = 0, 0
        while done < span.length:
            before = done
            try:
                async with _transfer(self._url, span.start + done) as transfer:
                    while done < span.length:
                        data = await _in_thread(transfer.read, min(READ_BYTES, span.length - done))
                        if not data:
                            raise EOFError("the file ended early")
                        write(data)
                        done += len(data)
            except _BROKEN as error:
                fruitless = 0 if done > before else fruitless + 1
                if fruitless >= TRIES_MAX:
                    raise _unreadable(error) from error
                await trio.sleep(Backoff().delay_s(fruitless + 1))


@asynccontextmanager
async def streamed_ftp(url: str) -> AsyncIterator[Read]:
    """All that a URL has, in order. Raises SourceError."""
    try:
        async with _transfer(url, 0) as transfer:

            async def read(n: int) -> bytes:
                try:
                    data = await _in_thread(transfer.read, n)
                    if not data:
                        await _in_thread(transfer.finish)
                    return data
                except (*_BROKEN, ftplib.error_perm) as error:
                    raise _unreadable(error) from error

            yield read
    except _BROKEN as error:
        raise _unreadable(error) from error


@asynccontextmanager
async def _transfer(url: str, start: int) -> AsyncIterator[_Transfer]:
    try:
        transfer = await _in_thread(_Transfer, url, start)
    except (ftplib.error_perm, ValueError) as error:
        raise _unreadable(error) from error
    try:
        yield transfer
    finally:
        transfer.close()


async def _tried(ask: Callable[[], T]) -> T:
    for left in reversed(range(TRIES_MAX)):
        try:
            return await _in_thread(ask)
        except (ftplib.error_perm, ValueError) as error:
            raise _unreadable(error) from error
        except _BROKEN as error:
            if not left:
                raise _unreadable(error) from error
            await trio.sleep(Backoff().delay_s(TRIES_MAX - left))
    raise AssertionError("unreachable")


async def _in_thread(call: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)


def _looked_at(url: str) -> tuple[int, str] | None:
    """Size and time of a file; ``None`` where the server cannot tell, or cannot begin anywhere. Blocks."""
    ftp = _connected(url)
    try:
        path = _path_of(url)
        try:
            size = ftp.size(path)
            if size is None or not size:
                return None
            ftp.sendcmd("REST 1")
            ftp.sendcmd("REST 0")
        except ftplib.error_perm as error:
            if str(error).startswith("550"):
                raise
            return None
        try:
            changed = ftp.sendcmd(f"MDTM {path}")
        except ftplib.error_perm:
            changed = ""
        return size, changed.partition(" ")[2].strip()
    finally:
        ftp.close()


def _connected(url: str) -> ftplib.FTP:
    parts = urlsplit(url)
    ftp = ftplib.FTP(timeout=TIMEOUT_S)
    try:
        ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
    except BaseException:
        ftp.close()
        raise
    return ftp


def _path_of(url: str) -> str:
    """From the folder on in which a login begins; a path from the top begins with a second slash."""
    return unquote(urlsplit(url).path)[1:]


def _unreadable(error: Exception) -> SourceError:
    return SourceError(f"it cannot be read: {str(error) or type(error).__name__}")
