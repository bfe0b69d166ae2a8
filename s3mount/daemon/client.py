"""A command's side of the control socket: plain blocking calls, each with a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from s3mount.daemon import protocol
from s3mount.daemon.registry import MountRecord, short_path, socket_name
from s3mount.errors import MountError, S3MountError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0


class Refused(S3MountError):
    """The mount's process could not do what was asked; the message is its own."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ControlClient:
    """One connection to one mount's process, for one request."""

    def __init__(self, folder: Path, record: MountRecord) -> None:
        """Connect. Raises MountError when nobody listens there."""
        self._record = record
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            with short_path(folder / socket_name(record.mountpoint)) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise MountError(
                f"the process of {record.mountpoint} (pid {record.pid}) does not listen: "
                f"{error.strerror or error}"
            ) from None

    def ask(
        self, request: protocol.Request, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> dict[str, Any]:
        """Send a request that is answered at once; its result. Raises Refused and MountError."""
        self.send(request)
        for answer in self.answers(timeout_s):
            if isinstance(answer, protocol.Done):
                return answer.result
            if isinstance(answer, protocol.Failed):
                raise Refused(answer.message, answer.exit_code)
        raise MountError(f"the process of {self._record.mountpoint} hung up without an answer")

    def send(self, request: protocol.Request) -> None:
        """Send the connection's one request. Raises MountError."""
        try:
            self._socket.sendall(protocol.encode(request))
        except UnicodeEncodeError:
            # Keys are UTF-8, and so is every name in a mount.
            raise MountError("the path is not UTF-8: there is no such name in the mount") from None
        except OSError as error:
            raise MountError(
                f"the process of {self._record.mountpoint} hung up: {error.strerror or error}"
            ) from None

    def answers(self, silence_s: float) -> Iterator[protocol.Answer]:
        """The answers as they come, until the process hangs up.

        Raises MountError when nothing comes for ``silence_s``, or nonsense does.
        """
        while True:
            line = self._line(silence_s)
            if line is None:
                return
            try:
                yield protocol.decode_answer(line)
            except msgspec.MsgspecError as error:
                raise MountError(
                    f"the process of {self._record.mountpoint} answers in another language "
                    f"(another version of s3mount?): {error}"
                ) from None

    def _line(self, silence_s: float) -> bytes | None:
        deadline = time.monotonic() + silence_s
        while (end := self._buffer.find(b"\n")) < 0:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._silent(silence_s)
            self._socket.settimeout(remaining)
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                raise self._silent(silence_s) from None
            except OSError:
                return None
            if not chunk or len(self._buffer) > protocol.ANSWER_BYTES_MAX:
                return None
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _silent(self, silence_s: float) -> MountError:
        return MountError(
            f"the process of {self._record.mountpoint} (pid {self._record.pid}) "
            f"has not answered for {silence_s:g} s"
        )

    def close(self) -> None:
        """Hang up. Repeatable."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def wait_ended(record: MountRecord, timeout_s: float) -> bool:
    """Wait until a mount's process has exited; whether it has."""
    try:
        watched = os.pidfd_open(record.pid)
    except OSError:
        return not record.alive
    try:
        if not record.alive:
            return True
        deadline = time.monotonic() + timeout_s
        # A pidfd is readable from the end of its process on.
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        while (remaining := deadline - time.monotonic()) > 0:
            if poll.poll(remaining * 1000):
                return True
        return not record.alive
    finally:
        with contextlib.suppress(OSError):
            os.close(watched)
