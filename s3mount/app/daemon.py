"""The whole life of the daemon's process: outboxes, sockets, signals, and the end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from s3mount import crashpoints, logs, status
from s3mount.app import settings
from s3mount.app.folders import be_private, check_writable, open_spool
from s3mount.background import Background
from s3mount.cache.reader import CacheReader
from s3mount.config import OUTBOX, DaemonConfig, MountConfig
from s3mount.daemon import ownership, registry, systemd
from s3mount.daemon.intake import Intake
from s3mount.daemon.outbox import Outbox
from s3mount.daemon.ownership import StateLock
from s3mount.daemon.server import ControlServer
from s3mount.daemon.tcp import TcpServer, bound, requests_log
from s3mount.engine.client import EngineClient
from s3mount.errors import LocalDiskError, MountError, S3MountError, UsageError
from s3mount.logs import dump_stacks_on_sigusr1
from s3mount.tasks import first_error
from s3mount.tasks import run as run_loop
from s3mount.version import __version__
from s3mount.vfs.filesystem import Filesystem

log = logging.getLogger(__name__)

OUTBOXES_MAX = 64
"""Buckets at a time: each has a process that talks to S3, of 60 MiB."""
BACKLOG = 128
IDLE_LOOK_S = 0.5


class Outboxes:
    """One outbox for each bucket, opened when it is needed first."""

    def __init__(self, config: DaemonConfig, nursery: trio.Nursery, log_path: str) -> None:
        self._config = config
        self._nursery = nursery
        self._log_path = log_path
        self._opening = trio.Lock()
        self._gone: dict[str, trio.Event] = {}
        self.all: dict[str, Outbox] = {}
        self.left = 0
        self._is_ending = False

    async def of(self, bucket: str) -> Outbox:
        """The outbox of ``bucket``. Raises S3MountError where it cannot be opened."""
        if self._is_ending:
            raise MountError("the daemon ends: hand it over again once it runs")
        return await self._opened(self._config.outbox(bucket))

    async def recover(self) -> None:
        """Open all that an earlier run left something in. What cannot be opened is logged, and left as it is."""
        for folder, note in ownership.leftovers(Path(self._config.state_dir)):
            if not folder.name.startswith(OUTBOX) or ownership.is_held(folder):
                continue
            try:
                bucket = settings.recall(folder).store.bucket
                config = self._config.outbox(bucket)
                if config.state_dir != str(folder):
                    # Of another endpoint.
                    config = settings.recall(folder)
                await self._opened(config)
            except S3MountError as error:
                log.error("what is left for %s stays in %s: %s", note.source, folder, error)

    async def _opened(self, config: MountConfig) -> Outbox:
        async with self._opening:
            found = self.all.get(config.state_dir)
            if found is not None:
                found.used()
            else:
                if len(self.all) >= OUTBOXES_MAX:
                    raise UsageError(f"the daemon sends to {OUTBOXES_MAX} buckets already")
                with first_error():
                    found = await self._nursery.start(self._run, config)
                assert found is not None
            return found

    async def end_idle(self) -> None:
        """End those that had nothing to do for a while, for ever."""
        idle_s = self._config.idle_after_s
        while True:
            await trio.sleep(max(idle_s / 4, IDLE_LOOK_S))
            async with self._opening:
                for place, outbox in list(self.all.items()):
                    if outbox.is_idle(idle_s):
                        log.info("nothing is to be done for %s", outbox.name)
                        outbox.is_ending = True
                        outbox.ended.set()
                        await self._gone[place].wait()

    async def _run(self, config: MountConfig, *, task_status: trio.TaskStatus[Outbox]) -> None:
        folder = Path(config.state_dir)
        with first_error(), StateLock(folder, config.mountpoint, config.store.bucket) as lock:
            settings.remember(config)
            async with (
                open_spool(config) as spool,
                EngineClient(config.store) as store,
                trio.open_nursery() as nursery,
            ):
                reader = CacheReader(
                    store,
                    Path(config.cache_dir),
                    namespace="outbox",
                    size_bytes_max=config.cache_bytes_max,
                    free_bytes_min=config.cache_free_bytes_min,
                    prefetch_bytes_max=config.prefetch_bytes_max,
                )
                await nursery.start(reader.run)
                filesystem = Filesystem(config=config, store=store, spool=spool, reader=reader)
                await nursery.start(filesystem.run)
                outbox = Outbox(config, filesystem, store, self._log_path)
                record = self._record(config)
                control = Control(outbox, filesystem, record)
                await nursery.start(control.run)
                self.all[config.state_dir] = outbox
                self._gone[config.state_dir] = trio.Event()
                task_status.started(outbox)
                try:
                    await outbox.ended.wait()
                    await control.server.end(*outbox.pending())
                finally:
                    control.withdraw()
                nursery.cancel_scope.cancel()
            left, left_bytes = len(spool.changes), spool.dependencies.put_bytes
            with contextlib.suppress(LocalDiskError):
                lock.note("ended", left, left_bytes)
            self.left += left
        del self.all[config.state_dir]
        self._gone.pop(config.state_dir).set()

    def _record(self, config: MountConfig) -> registry.MountRecord:
        pid = os.getpid()
        return registry.MountRecord(
            mountpoint=config.mountpoint,
            source=config.store.bucket,
            pid=pid,
            started_ticks=registry.process_start_ticks(pid) or 0,
            state_dir=config.state_dir,
            log_path=self._log_path,
            version=__version__,
        )

    async def end(self, drain_s: float) -> None:
        """Take no more, send what is left within ``drain_s``, and end all."""
        self._is_ending = True
        for outbox in self.all.values():
            outbox.is_ending = True
        with trio.move_on_after(drain_s) as draining:
            async with trio.open_nursery() as nursery:
                for outbox in self.all.values():
                    nursery.start_soon(_drain, outbox)
        if draining.cancelled_caught:
            log.warning("not everything was sent within %g s", drain_s)
        for outbox in self.all.values():
            outbox.ended.set()


async def _drain(outbox: Outbox) -> None:
    files, size_bytes = outbox.pending()
    if files:
        log.info("sending %s to %s first", status.amount(files, size_bytes), outbox.name)
    try:
        await outbox.wait_uploaded()
    except S3MountError as error:
        log.warning("not everything could be sent to %s: %s", outbox.name, error)


class Control:
    """The control socket of one outbox, as a mount has one."""

    def __init__(
        self, outbox: Outbox, filesystem: Filesystem, record: registry.MountRecord
    ) -> None:
        self.server = ControlServer(outbox, filesystem)
        self._record = record
        self._folder: Path | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Answer commands until cancelled."""
        await self.server.run(self._place, self._publish, task_status=task_status)

    def _place(self) -> Path:
        self._folder = registry.writable_run_dir()
        return self._folder / registry.socket_name(self._record.mountpoint)

    def _publish(self, path: Path) -> None:
        try:
            registry.publish(path.parent, self._record)
        except OSError as error:
            raise LocalDiskError(f"{path.parent} cannot be written: {error.strerror}") from None

    def withdraw(self) -> None:
        """Take back the word of it. Repeatable."""
        if self._folder is not None:
            registry.withdraw(self._folder, self._record)


class Daemon:
    """Runs one daemon, once."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._signals = 0
        self._told_to_end = trio.Event()
        self._whole = trio.CancelScope()

    async def run(self, listener: socket.socket, tcp: list[socket.socket]) -> int:
        """Serve until a signal; 0: all is in S3, 1: something is kept for the next start."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        listener.setblocking(False)
        outboxes: Outboxes | None = None
        with trio.open_signal_receiver(*numbers) as received:
            dump_stacks_on_sigusr1()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, received)
                with self._whole:
                    async with trio.open_nursery() as serving:
                        outboxes = Outboxes(self._config, serving, self._config.log_file or "")
                        await outboxes.recover()
                        async with trio.open_nursery() as taking:
                            background = Background(taking)
                            intake = Intake(outboxes.of)
                            background.keep(intake.run, trio.socket.from_stdlib_socket(listener))
                            background.keep(outboxes.end_idle)
                            if self._config.tcp is not None:
                                server = TcpServer(
                                    self._config.tcp,
                                    outboxes.of,
                                    requests_log(self._config.tcp.log_path),
                                )
                                background.keep(server.run, tcp)
                            self._announce()
                            await self._told_to_end.wait()
                            systemd.notify("STOPPING=1")
                            await outboxes.end(self._config.drain_timeout_s)
                            taking.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        is_kept = self._whole.cancelled_caught or outboxes is None or outboxes.left
        log.info("ended; %s", "what is not in S3 is kept" if is_kept else "everything is in S3")
        return int(bool(is_kept))

    def _announce(self) -> None:
        message = f"the daemon takes files at {self._config.socket}"
        log.info("%s", message)
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={message}")

    async def _heed(self, received: AsyncIterator[int]) -> None:
        async for number in received:
            self._signals += 1
            name = signal.Signals(number).name
            if self._signals == 1:
                log.info("%s: sending what is left; once more ends at once", name)
                self._told_to_end.set()
            else:
                log.warning("%s again: ending at once", name)
                self._whole.cancel()


def run_daemon(config: DaemonConfig) -> int:
    """Listen and serve until a signal; the exit status. Blocks; once per process. Raises S3MountError."""
    be_private()
    if config.log_file:
        logs.to_file(Path(config.log_file), config.log_level, config.log_format)
    else:
        logs.to_terminal(config.log_level, config.log_format)
    crashpoints.arm()
    check_writable("state", Path(config.state_dir))
    _allow_many_files()
    passed = systemd.passed_sockets()
    unix = [each for each in passed if each.family == socket.AF_UNIX]
    inet = [each for each in passed if each.family != socket.AF_UNIX]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(Path(config.socket), config.group, unix))
        tcp = stack.enter_context(bound(config.tcp, inet)) if config.tcp is not None else []
        return run_loop(lambda: Daemon(config).run(listener, tcp))


def _allow_many_files() -> None:
    """Every file that is handed over is open here for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.debug("open files: up to %d instead of %d", hard, soft)


@contextlib.contextmanager
def listening(
    path: Path, group: int | None, passed: list[socket.socket]
) -> Iterator[socket.socket]:
    """The listening socket at ``path``: for this user, and the members of ``group``, if given.

    The one that systemd ``passed``, where it did. Raises MountError where another daemon listens there, LocalDiskError.
    """
    with contextlib.ExitStack() as stack:
        if passed:
            yield stack.enter_context(passed[0])
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            listener = stack.enter_context(_bound(path, group))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise MountError(f"another daemon listens at {path} already") from None
            raise LocalDiskError(f"cannot listen at {path}: {error.strerror}") from None
        stack.callback(path.unlink, missing_ok=True)
        yield listener


def _bound(path: Path, group: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.unlink(missing_ok=True)
        with registry.short_path(path) as address:
            before = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(before)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
