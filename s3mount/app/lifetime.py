"""One mount from start to end: mount, serve, heed signals, drain, unmount.

The order matters. What is pending lies in the journal before a writer is answered, so any step may
be cut short without loss; the steps are there so that an orderly end leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import pyfuse3
import trio

from s3mount import gc_tuning, status
from s3mount.app.monitor import run_monitor
from s3mount.background import Background
from s3mount.config import MountConfig, RunConfig
from s3mount.crashpoints import crashpoint
from s3mount.daemon import registry, systemd
from s3mount.daemon.launch import Reporter
from s3mount.daemon.ownership import Phase, StateLock
from s3mount.daemon.server import Controls, ControlServer
from s3mount.errors import LocalDiskError, MountError, S3MountError
from s3mount.fuse import session as fuse_session
from s3mount.fuse.session import Session
from s3mount.logs import dump_stacks_on_sigusr1
from s3mount.turns import Turns, watched
from s3mount.version import __version__

log = logging.getLogger(__name__)

STATISTICS_TIMEOUT_S = 2.0

STOP_MARGIN_S = 30
"""While it drains, the supervisor is asked again and again to wait so much longer. Unmounting takes up to
20 s when somebody stays in the mount."""

COPIES_GRACE_S = 1.0
"""How long the kernel gets to tell us that the last of a mount is gone, before we look who holds a copy."""

LAST_DRAIN_S = 2.0
"""After a signal's drain used up its time, what came in while unmounting gets this long."""


class Served(Controls, Protocol):
    """What this module needs of the file system."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Background work until cancelled; reports started when requests can be answered."""
        ...

    def release_waiters(self) -> None:
        """The mount is about to end: requests that wait for S3 are answered with an error. Repeatable."""
        ...

    async def status(self) -> dict[str, Any]:
        """Counts and lists for ``status.Snapshot``."""
        ...

    async def status_of(self, path: str) -> dict[str, Any]:
        """One file. Raises S3MountError."""
        ...


class Parts(msgspec.Struct, frozen=True):
    """What a mount is made of.

    ``statistics`` are the store's counters. ``where`` describes the bucket: endpoint_url, region,
    versioning. ``more`` is told with the status, ``notes`` also when the mount is there.
    """

    filesystem: Served
    operations: pyfuse3.Operations
    statistics: Callable[[], Awaitable[dict[str, float]]]
    where: dict[str, Any] = {}
    more: Callable[[], dict[str, Any]] = dict
    notes: Sequence[str] = ()


class Lifetime:
    """Runs one mount, once; ``run`` returns the exit status.

    ``build`` is an async context that makes the parts and takes them down; it raises S3MountError
    for what keeps the bucket from being mounted.
    """

    def __init__(
        self,
        config: MountConfig,
        run: RunConfig,
        *,
        lock: StateLock,
        reporter: Reporter,
        log_path: str,
        build: Callable[[], AbstractAsyncContextManager[Parts]],
    ) -> None:
        self._config = config
        self._run = run
        self._lock = lock
        self._reporter = reporter
        self._log_path = log_path
        self._build = build
        self._parts: Parts | None = None
        self._session: Session | None = None
        self._phase: Literal["serving", "draining"] = "serving"
        self._mounted_at_ns = 0
        self._run_dir: Path | None = None
        self._whole = trio.CancelScope()
        self._draining: trio.CancelScope | None = None
        self._unmounted = trio.Event()
        self._signals = 0
        self._drain_ends: float | None = None
        self._leave_rest = False
        self._cut_off: list[str] = []
        self._turns = Turns()

    async def run(self) -> int:
        """Mount, serve until the mount ends, drain. 0: all is in S3; 1: something is kept for later.

        Raises S3MountError when the mount could not be made; nothing is left mounted then.
        """
        result = 1
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with (
            watched() as self._turns,
            trio.open_signal_receiver(*numbers) as received,
        ):
            dump_stacks_on_sigusr1()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, received, nursery)
                with self._whole:
                    async with self._build() as parts:
                        self._parts = parts
                        result = await self._mount_and_serve(parts)
                nursery.cancel_scope.cancel()
        if not self._mounted_at_ns:
            raise MountError("interrupted before the mount was there")
        return self._account() if self._whole.cancelled_caught else result

    @property
    def was_mounted(self) -> bool:
        """Did the mount ever answer?"""
        return self._mounted_at_ns > 0

    # What ControlServer asks for.

    async def snapshot(self) -> dict[str, Any]:
        """Everything that ``s3mount status`` shows of this mount."""
        assert self._parts is not None
        assert self._session is not None
        record = self._record()
        found = status.Snapshot(
            mountpoint=record.mountpoint,
            source=record.source,
            phase="ending" if self._signals and self._phase == "serving" else self._phase,
            pid=record.pid,
            version=record.version,
            mounted_at_ns=self._mounted_at_ns,
            state_dir=self._config.state_dir,
            cache_dir=self._config.cache_dir,
            log_path=self._log_path,
            kernel=msgspec.to_builtins(self._session.tuning),
            s3=await self._statistics(),
            loop=self._turns.statistics(),
        )
        plain: dict[str, Any] = msgspec.to_builtins(found)
        parts = self._parts
        return {**plain, **parts.where, **parts.more(), **await parts.filesystem.status()}

    async def snapshot_of(self, path: str) -> dict[str, Any]:
        """One file of the mount. Raises S3MountError."""
        assert self._parts is not None
        try:
            return await self._parts.filesystem.status_of(path)
        except OSError as error:
            raise MountError(f"{path}: {error.strerror or error}") from None

    @property
    def _files(self) -> Served:
        assert self._parts is not None
        return self._parts.filesystem

    async def moved(self) -> float:
        """A number that is higher than ever before whenever something was sent."""
        return (await self._statistics()).get("bytes_written", 0.0)

    async def _statistics(self) -> dict[str, float]:
        """The store's counters; none when it cannot tell just now."""
        assert self._parts is not None
        with trio.move_on_after(STATISTICS_TIMEOUT_S):
            with contextlib.suppress(S3MountError):
                return dict(sorted((await self._parts.statistics()).items()))
        return {}

    def stop_draining(self) -> None:
        """If the mount has ended already, keep the rest for the next one and exit."""
        if self._phase == "draining" or (self._session and self._session.is_taken_away):
            log.info("told to leave the rest for the next mount")
            self._leave_rest = True
            if self._draining is not None:
                self._draining.cancel()

    async def end_where_taken_away(self) -> None:
        """Return when the mount has ended; end it when its mount point is gone, but somebody holds a copy.

        A process that made a mount namespace of its own, as a container does, holds every mount of then
        until it ends. What it has not handed over is written back first; then it gets ENOTCONN.
        """
        assert self._session is not None
        since_s = float("inf")
        while not self._unmounted.is_set():
            with trio.move_on_after(COPIES_GRACE_S / 4):
                await self._unmounted.wait()
                return
            now_s = trio.current_time()
            since_s = min(since_s, now_s) if self._session.is_taken_away else float("inf")
            if now_s - since_s >= COPIES_GRACE_S:
                copies = await self._session.copies()
                self._cut_off = [str(copy) for copy in copies]
                who = ", ".join(self._cut_off) or "a process that cannot be seen from here"
                log.warning("unmounted, but held by %s, which is cut off", who)
                for copy in copies:
                    # One is enough, as it is of the whole file system; the first may just have ended.
                    if (said := await fuse_session.write_back(copy.path)) is None:
                        break
                    log.warning("what %s wrote last may be missing: %s", copy, said)
                self._session.terminate()
                await self._unmounted.wait()

    # The stages.

    async def _mount_and_serve(self, parts: Parts) -> int:
        server = ControlServer(self, parts.filesystem)
        record = self._record()
        session = self._session = Session(
            parts.operations,
            self._config.mountpoint,
            fuse_session.mount_options(self._config, self._run.source, self._run.kernel_options),
            fast_loop=self._config.fast_loop,
        )
        orderly = False
        try:
            async with trio.open_nursery() as nursery:
                self._reporter.step("recovering what an earlier mount left")
                await nursery.start(parts.filesystem.run)
                self._reporter.step("mounting")
                gc_tuning.spare_what_is_loaded()
                session.open()
                await nursery.start(self._serve_kernel, session)
                await nursery.start(server.run, self._socket_path, self._publish)
                self._announce(session, parts.notes)
                if self._run.metrics:
                    Background(nursery).keep(
                        run_monitor, self._config.mountpoint, self._run.metrics
                    )
                await self._unmounted.wait()
                # What is at the mount point by now, if ours is gone, is somebody else's.
                session.close(unmount=not session.is_taken_away)
                await self._drain_last()
                crashpoint("drain: ended")
                await server.end(*parts.filesystem.pending(), tuple(self._cut_off))
                orderly = True
                nursery.cancel_scope.cancel()
        finally:
            # A mount that broke down stays there as a dead one: an empty folder in its place would
            # look to rsync as if everything had been deleted.
            session.close(unmount=orderly or self._signals > 0 or not self._mounted_at_ns)
            if self._run_dir is not None:
                registry.withdraw(self._run_dir, record)
        return self._account()

    def _socket_path(self) -> Path:
        self._run_dir = registry.writable_run_dir()
        return self._run_dir / registry.socket_name(self._config.mountpoint)

    def _publish(self, path: Path) -> None:
        try:
            registry.publish(path.parent, self._record())
        except OSError as error:
            raise LocalDiskError(f"{path.parent} cannot be written: {error.strerror}") from None

    async def _serve_kernel(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        await session.serve(task_status=task_status)
        self._unmounted.set()

    def _announce(self, session: Session, notes: Sequence[str]) -> None:
        self._mounted_at_ns = time.time_ns()
        message = f"{self._run.source} is mounted at {self._config.mountpoint}"
        log.info("%s; kernel limits set: %s", message, session.tuning)
        told = "\n".join([message, *(f"s3mount: note: {note}" for note in notes)])
        self._reporter.ready(self._config.mountpoint, told)
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={message}")
        # Till now nobody could wait for an answer.
        self._turns.begin()

    async def _drain_last(self) -> None:
        """The mount has ended; send what is left, within bounds."""
        systemd.notify("STOPPING=1")
        self._phase = "draining"
        self._note("draining")
        allowed_s = self._run.drain_timeout_s
        if self._drain_ends is not None:
            allowed_s = max(LAST_DRAIN_S, self._drain_ends - trio.current_time())
        files, size_bytes = self._files.pending()
        if files:
            log.info("unmounted; sending %s first", status.amount(files, size_bytes))
        await self._drain(allowed_s)

    async def _drain(self, allowed_s: float) -> None:
        with trio.move_on_after(0 if self._leave_rest else allowed_s) as self._draining:
            async with trio.open_nursery() as nursery:
                Background(nursery).start(self._ask_for_time)
                try:
                    await self._files.wait_uploaded()
                except S3MountError as error:
                    log.warning("not everything could be sent: %s", error)
                nursery.cancel_scope.cancel()
        if self._draining.cancelled_caught and not self._leave_rest:
            log.warning("not everything was sent within %g s", allowed_s)

    async def _ask_for_time(self) -> None:
        """While it drains, let the supervisor know how far it is and that it still has to wait."""
        while True:
            left = status.amount(*self._files.pending())
            systemd.notify(
                f"STATUS=sending what is left: {left}",
                f"EXTEND_TIMEOUT_USEC={STOP_MARGIN_S * 1_000_000}",
            )
            await trio.sleep(STOP_MARGIN_S / 3)

    def _account(self) -> int:
        """Say what stays behind; the exit status."""
        if self._parts is None:
            return 1
        files, size_bytes = self._files.pending()
        self._note("ended", files, size_bytes)
        if not files:
            told = "" if self._config.past is not None else "everything is in S3"
            log.info("unmounted%s", told and f"; {told}")
            systemd.notify(f"STATUS={told or 'unmounted'}")
            return 0
        left = status.amount(files, size_bytes)
        systemd.notify(f"STATUS={left} not in S3 yet, kept in {self._config.state_dir}")
        log.warning(
            "%s not in S3 yet: kept in %s and sent at the next mount of %s",
            left,
            self._config.state_dir,
            self._run.source,
        )
        return 1

    def _note(self, phase: Phase, files: int = 0, size_bytes: int = 0) -> None:
        try:
            self._lock.note(phase, files, size_bytes)
        except LocalDiskError as error:
            # The journal is what counts; status only knows less of this mount.
            log.warning("%s", error)

    # Signals.

    async def _heed(self, received: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in received:
            if number == signal.SIGUSR1:
                log.warning("tasks of the loop:\n%s", describe_tasks())
                continue
            self._signals += 1
            name = signal.Signals(number).name
            if self._signals == 1 and self._mounted_at_ns:
                log.info("%s: sending what is left, then unmounting; once more ends at once", name)
                Background(nursery).start(self._stop)
            elif self._mounted_at_ns:
                log.warning("%s again: ending at once", name)
                self._whole.cancel()
            else:
                self._reporter.failed("interrupted before the mount was there", 1)
                self._whole.cancel()

    async def _stop(self) -> None:
        """Drain while the mount is still served, then unmount it, by force if somebody stays in it."""
        systemd.notify("STOPPING=1")
        assert self._session is not None
        assert self._parts is not None
        self._drain_ends = trio.current_time() + self._run.drain_timeout_s
        await self._drain(self._run.drain_timeout_s)
        self._parts.filesystem.release_waiters()
        if self._unmounted.is_set():
            return
        reason = await fuse_session.unmount(self._config.mountpoint)
        if reason is None or self._unmounted.is_set():
            await self.end_where_taken_away()
            return
        log.warning(
            "still in use (%s): what the kernel holds is written back, then cut off", reason
        )
        said = await fuse_session.write_back(self._config.mountpoint)
        if said is not None:
            log.warning("the kernel's last writes may be missing: %s", said)
        self._session.terminate()

    def _record(self) -> registry.MountRecord:
        pid = os.getpid()
        return registry.MountRecord(
            mountpoint=self._config.mountpoint,
            source=self._run.source,
            pid=pid,
            started_ticks=registry.process_start_ticks(pid) or 0,
            state_dir=self._config.state_dir,
            log_path=self._log_path,
            version=__version__,
            is_snapshot=self._config.past is not None,
        )


def describe_tasks() -> str:
    """Every task of this trio loop and where it waits, for the log of a mount that seems to hang."""
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    waiting = [(root, 0)] if root is not None else []
    while waiting:
        task, depth = waiting.pop()
        lines.append(f"{'  ' * depth}{task.name}")
        lines.extend(
            f"{'  ' * depth}  at {frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
            for frame, line in task.iter_await_frames()
        )
        for nursery in task.child_nurseries:
            waiting.extend((child, depth + 1) for child in nursery.child_tasks)
    return "\n".join(lines)
