"""The mount's side of its control socket, in the mount's own trio loop."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from s3mount.background import Background, attempt
from s3mount.daemon import protocol, registry
from s3mount.errors import LocalDiskError, S3MountError, UsageError
from s3mount.refs import TreeWork
from s3mount.vfs.steering import Steering

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 32
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
PROGRESS_EVERY_S = 0.5
HEARTBEAT_S = 10.0
"""So often who follows is told that nothing happened, by which it is seen whether he is there."""
LOOK_EVERY_S = 30.0
"""How often it is seen to that the socket can still be found."""
ACCEPT_PAUSE_S = 1.0


class Controls(Protocol):
    """What the server needs of the file system."""

    @property
    def steering(self) -> Steering | None:
        """What a mount can be told to do while it runs; ``None`` where there is nothing to steer."""
        ...

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        """Until all, or those paths', changes made so far are in S3. Raises S3MountError."""
        ...

    async def retry(self, paths: Sequence[str], *, overwrite: bool) -> list[str]:
        """Try refused changes again now; their keys. Raises S3MountError."""
        ...

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """Hold bodies to these rates from now on; 0: to none. Raises S3MountError."""
        ...

    async def set_log_level(self, level: str) -> None:
        """Log from this level on, in both processes. Raises S3MountError."""
        ...

    async def refresh(self, paths: Sequence[str]) -> None:
        """Forget what is known of them, so that the next look asks S3."""
        ...

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool) -> list[str]:
        """Give pending changes up, or only tell which; their keys. Raises S3MountError."""
        ...

    def pending(self) -> tuple[int, int]:
        """Files and bytes that are not in S3 yet."""
        ...

    def trouble(self) -> str:
        """The first of them that S3 did not take, and why; empty when there is none."""
        ...


class Mounted(Protocol):
    """What the server needs of the mount."""

    async def snapshot(self) -> dict[str, Any]:
        """Everything that ``status`` shows."""
        ...

    async def snapshot_of(self, path: str) -> dict[str, Any]:
        """One file. Raises S3MountError."""
        ...

    async def moved(self) -> float:
        """A number that is higher than ever before whenever something was sent. Never raises."""
        ...

    async def end_where_taken_away(self) -> None:
        """Return when the mount has ended; end it when its mount point is gone, but a copy of it is held."""
        ...

    def stop_draining(self) -> None:
        """Leave the rest for the next mount, if all that is left to do is to send it."""
        ...


class ControlServer:
    """Answers commands until cancelled. ``end`` must be called before the process exits."""

    def __init__(self, mounted: Mounted, controls: Controls) -> None:
        self._mounted = mounted
        self._controls = controls
        self._ended = trio.Event()
        self._leaving = 0
        self._left = trio.Event()
        self._end: protocol.Ended | None = None
        self._slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def run(
        self,
        place: Callable[[], Path],
        publish: Callable[[Path], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen at ``place()`` until cancelled; a stale socket there is replaced.

        ``publish(path)`` is called when it listens. Where somebody takes the socket away (the run
        folder of a user ends with the last login), another place is asked for. Raises
        LocalDiskError, at the start only.
        """
        path = place()
        listener = _listen(path)
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            try:
                publish(path)
            except BaseException:
                _stop_listening(listener, path)
                raise
            task_status.started()
            while True:
                try:
                    is_gone = await attempt(
                        self._accept, listener, path, background, otherwise=False
                    )
                finally:
                    _stop_listening(listener, path)
                if not is_gone:
                    await trio.sleep(LOOK_EVERY_S)
                log.warning("the control socket %s was taken away; a new one is made", path)
                path, listener = await _listen_again(place, publish)

    async def _accept(
        self, listener: trio.socket.SocketType, path: Path, background: Background
    ) -> bool:
        """Take connections until the socket at ``path`` is not there any more; then True."""
        while path.exists():
            with trio.move_on_after(LOOK_EVERY_S):
                while True:
                    try:
                        connection, _ = await listener.accept()
                    except OSError as error:
                        # No descriptor is free, or the caller is gone already.
                        log.warning("a command cannot be answered now: %s", error.strerror)
                        await trio.sleep(ACCEPT_PAUSE_S)
                    else:
                        background.start(self._serve, trio.SocketStream(connection))
        return True

    async def end(self, files: int, size_bytes: int, cut_off: tuple[str, ...] = ()) -> None:
        """Tell those who asked to leave that the process now exits, and what it leaves behind.

        Bounded to a second. Call once.
        """
        self._end = protocol.Ended(files, size_bytes, cut_off)
        self._ended.set()
        with trio.move_on_after(1.0):
            while self._leaving:
                await self._left.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if not _permitted(stream.socket):
                return
            try:
                async with self._slots:
                    await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return
            except Exception:
                # One command's trouble must not end the mount.
                log.exception("a command's connection failed")

    async def _converse(self, stream: trio.SocketStream) -> None:
        with trio.fail_after(REQUEST_TIMEOUT_S):
            line = await _read_line(stream, protocol.REQUEST_BYTES_MAX)
        try:
            request = protocol.decode_request(line)
        except msgspec.MsgspecError as error:
            await _send(stream, protocol.Failed(f"the mount does not know this request: {error}"))
            return
        try:
            if isinstance(request, protocol.Leave):
                await self._leave(stream)
            elif isinstance(request, protocol.Wait):
                await self._reporting(stream, partial(self._controls.wait_uploaded, request.paths))
                await _send(stream, protocol.Done())
            elif isinstance(request, protocol.Follow):
                await self._follow(stream, request)
            elif isinstance(request, (protocol.Prefetch, protocol.Pin)):
                await self._bring(stream, request)
            else:
                await _send(stream, protocol.Done(await self._answer(request)))
        except S3MountError as error:
            await _send(stream, protocol.Failed(str(error), error.exit_code))

    async def _answer(self, request: protocol.Request) -> dict[str, Any]:
        controls = self._controls
        match request:
            case protocol.Retry(paths, overwrite):
                return {"keys": await controls.retry(paths, overwrite=overwrite)}
            case protocol.Discard(paths, is_rehearsal):
                return {"keys": await controls.discard(paths, is_rehearsal=is_rehearsal)}
            case protocol.Refresh(paths):
                await controls.refresh(paths)
            case protocol.SetRates(up_bytes_per_s, down_bytes_per_s):
                await controls.set_rates(up_bytes_per_s, down_bytes_per_s)
            case protocol.SetLogLevel(level):
                await controls.set_log_level(level)
            case protocol.Pause(is_paused):
                self._steering.pause(is_paused)
            case protocol.Evict(paths):
                return msgspec.structs.asdict(await self._steering.evict(paths))
            case protocol.Unpin(paths):
                return {"paths": await self._steering.unpin(paths)}
            case protocol.StatusOf(path):
                return await self._mounted.snapshot_of(path)
            case protocol.Stop():
                self._mounted.stop_draining()
            case _:
                return await self._mounted.snapshot()
        return {}

    @property
    def _steering(self) -> Steering:
        found = self._controls.steering
        if found is None:
            raise UsageError(
                "a mount of the past sends nothing and keeps no cache of its own to steer"
            )
        return found

    async def _follow(self, stream: trio.SocketStream, request: protocol.Follow) -> None:
        """Tell events, until the caller hangs up."""
        events, seq = self._steering.events, request.seq
        while True:
            found = events.since(seq)
            await _send(stream, protocol.Happened(found))
            seq = found[-1].seq if found else seq
            if not found:
                if request.is_once:
                    break
                await events.wait(seq, HEARTBEAT_S)
        await _send(stream, protocol.Done())

    async def _bring(
        self, stream: trio.SocketStream, request: protocol.Prefetch | protocol.Pin
    ) -> None:
        """Fetch trees, and tell how far that is; given up when the caller hangs up."""
        steering, work = self._steering, TreeWork()
        bring = steering.pin if isinstance(request, protocol.Pin) else steering.prefetch

        async def tell() -> protocol.Answer:
            return protocol.TreeProgress(work)

        await self._reporting(stream, partial(bring, request.paths, work), tell)
        await _send(stream, protocol.Done(msgspec.to_builtins(work)))

    async def _leave(self, stream: trio.SocketStream) -> None:
        with self._counted():
            try:
                await self._reporting(stream, self._uploaded_or_ended)
                if not self._ended.is_set():
                    await _send(stream, protocol.Flushed())
            except S3MountError as error:
                await _send(stream, protocol.Failed(str(error), error.exit_code))
            await self._reporting(stream, self._mount_and_process_ended)
            if self._end is not None:
                await _send(stream, self._end)

    async def _mount_and_process_ended(self) -> None:
        await self._mounted.end_where_taken_away()
        await self._ended.wait()

    async def _uploaded_or_ended(self) -> None:
        """Wait for all uploads, or for the process's end if that comes first. Raises S3MountError."""
        failure: S3MountError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_set, self._ended, nursery.cancel_scope)
            try:
                await self._controls.wait_uploaded()
            except S3MountError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _reporting(
        self,
        stream: trio.SocketStream,
        wait: Callable[[], Awaitable[None]],
        tell: Callable[[], Awaitable[protocol.Answer]] | None = None,
    ) -> None:
        """Wait for ``wait`` while telling how far it is (the uploads are); ends early when the caller hangs up.

        Raises what ``wait`` raises, if that is an S3MountError.
        """
        failure: S3MountError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                self._report, stream, nursery.cancel_scope, tell or self._tell_uploads
            )
            try:
                await wait()
            except S3MountError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _tell_uploads(self) -> protocol.Answer:
        moved = await self._mounted.moved()
        return protocol.Progress(*self._controls.pending(), moved, self._controls.trouble())

    async def _report(
        self,
        stream: trio.SocketStream,
        listening: trio.CancelScope,
        tell: Callable[[], Awaitable[protocol.Answer]],
    ) -> None:
        while True:
            report = await tell()
            try:
                await _send(stream, report)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                listening.cancel()
                return
            await trio.sleep(PROGRESS_EVERY_S)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._leaving += 1
        try:
            yield
        finally:
            self._leaving -= 1
            if not self._leaving:
                self._left.set()
                self._left = trio.Event()


def _listen(path: Path) -> trio.socket.SocketType:
    """A listening socket at ``path`` that only this user can connect to."""
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with registry.short_path(path) as address:
            before = os.umask(0o177)
            try:
                plain.bind(address)
            finally:
                os.umask(before)
        plain.listen(16)
    except OSError as error:
        plain.close()
        raise LocalDiskError(f"cannot listen at {path}: {error.strerror}") from None
    plain.setblocking(False)
    return trio.socket.from_stdlib_socket(plain)


async def _listen_again(
    place: Callable[[], Path], publish: Callable[[Path], None]
) -> tuple[Path, trio.socket.SocketType]:
    """Listen at a new place as soon as there is one."""
    while True:
        with contextlib.suppress(LocalDiskError, OSError):
            path = place()
            listener = _listen(path)
            try:
                publish(path)
            except BaseException:
                _stop_listening(listener, path)
                raise
            return path, listener
        await trio.sleep(LOOK_EVERY_S)


def _stop_listening(listener: trio.socket.SocketType, path: Path) -> None:
    listener.close()
    with contextlib.suppress(OSError):
        path.unlink()


async def _cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _permitted(connection: trio.socket.SocketType) -> bool:
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", credentials)[1]
    return uid in (0, os.geteuid())


async def _read_line(stream: trio.SocketStream, size_bytes_max: int) -> bytes:
    received = bytearray()
    while b"\n" not in received:
        chunk = await stream.receive_some()
        if not chunk or len(received) > size_bytes_max:
            raise trio.BrokenResourceError("no whole request")
        received += chunk
    return bytes(received[: received.index(b"\n")])


async def _send(stream: trio.SocketStream, answer: protocol.Answer) -> None:
    with trio.fail_after(ANSWER_TIMEOUT_S):
        await stream.send_all(protocol.encode(answer))
