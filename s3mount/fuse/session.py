"""The kernel's side of a mount: options, mount, serve, tune, unmount. One session per process.

pyfuse3 keeps its session in module globals, so a process can have one mount. No function here
looks at the mount point once it is mounted: the loop that would have to answer is the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pyfuse3
import trio

from s3mount import mountinfo
from s3mount.config import MountConfig
from s3mount.errors import MountError
from s3mount.fuse import fastloop

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
"""Read-ahead per file. Cold reads measured 2.1 GB/s at the kernel's 128 KiB, 3.7 at 1 MiB, 1.8 at 4."""

BACKGROUND_REQUESTS_MAX = 64
"""Read-ahead and write-back requests that the kernel has under way at once (its own default: 12)."""

CONGESTION_REQUESTS = 48
"""Background requests from which on the kernel holds back new ones: three quarters, as it does."""

TASKS_MAX = 128
"""Requests that are answered at once; more wait in the kernel."""

UNMOUNT_TIMEOUT_S = 20.0
SYNC_TIMEOUT_S = 10.0

_DEVICE = "/dev/fuse"


class Tuning(msgspec.Struct, frozen=True):
    """What the kernel accepted; ``None`` where it could not be set."""

    read_ahead_kib: int | None = None
    background_max: int | None = None
    fast_loop: bool = False


def mount_options(config: MountConfig, source: str, extra: tuple[str, ...] = ()) -> set[str]:
    """The options for libfuse. ``source`` is what mount(8) and df show; ``extra`` goes through as it is.

    A bucket's files are not to be trusted with set-id bits or device nodes: nosuid and nodev hold
    unless the configuration says otherwise.
    """
    options = set(pyfuse3.default_options)
    options.update((f"fsname={_option_text(source)}", "subtype=s3mount"))
    options.add("suid" if config.suid else "nosuid")
    options.add("dev" if config.dev else "nodev")
    if config.read_only:
        options.add("ro")
    if config.allow_other:
        options.add("allow_other")
    options.update(extra)
    return options


class Session:
    """One mount, from ``open`` to ``close``. Not reusable."""

    def __init__(
        self, operations: pyfuse3.Operations, mountpoint: str, options: set[str], *, fast_loop: bool
    ) -> None:
        self._operations = operations
        self._mountpoint = mountpoint
        self._options = options
        self._want_fast_loop = fast_loop
        self._fast_loop: fastloop.FastLoop | None = None
        self._initialised = trio.Event()
        self._open = False
        self.tuning = Tuning()
        self._entry: mountinfo.MountEntry | None = None

    def open(self) -> None:
        """Mount. Raises MountError with libfuse's own reason. Must be followed by ``close``."""
        before = _fuse_descriptors()
        self._report_init()
        with _captured_stderr() as said:
            try:
                pyfuse3.init(self._operations, self._mountpoint, self._options)
            except RuntimeError as error:
                raise MountError(_why_not(self._mountpoint, said()) or str(error)) from None
        self._open = True
        opened = _fuse_descriptors() - before
        if self._want_fast_loop and len(opened) == 1:
            self._fast_loop = fastloop.install(opened.pop())
            if self._fast_loop is None:
                log.info("this pyfuse3 has no place for the fast loop; it waits in its own way")

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the kernel until the mount ends: by ``terminate``, or unmounted from outside.

        Reports started when the kernel has shaken hands and its limits are set. A handler's
        unexpected exception ends it (handlers are wrapped, so none is expected). Cancellation
        ends it without unmounting.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, task_status)
            await pyfuse3.main(max_tasks=TASKS_MAX)
            nursery.cancel_scope.cancel()

    def terminate(self) -> None:
        """Make ``serve`` return once the requests under way are answered. From the loop; repeatable."""
        if self._fast_loop is not None:
            self._fast_loop.stop()
        if self._open:
            pyfuse3.terminate()

    def close(self, *, unmount: bool = True) -> None:
        """Free the session, and unmount unless told not to or done already. Repeatable.

        Does not wait for those who use the mount: they get ENOTCONN. Without unmounting, the mount
        point stays and everybody who looks gets ENOTCONN.
        """
        if self._open:
            self._open = False
            with _captured_stderr():
                pyfuse3.close(unmount=unmount)

    @property
    def is_taken_away(self) -> bool:
        """Is it not at its mount point any more? The mount lives on while somebody holds a copy of it."""
        entry = self._entry
        return entry is not None and not any(
            (now.mountpoint, now.major, now.minor) == (entry.mountpoint, entry.major, entry.minor)
            for now in mountinfo.read_mounts()
        )

    async def copies(self) -> list[mountinfo.Copy]:
        """Who still sees the mount."""
        if self._entry is None:
            await trio.lowlevel.checkpoint()
            return []
        device = self._entry.major, self._entry.minor
        return await trio.to_thread.run_sync(mountinfo.copies_of, *device, abandon_on_cancel=True)

    async def _announce(self, task_status: trio.TaskStatus[None]) -> None:
        await self._initialised.wait()
        await trio.lowlevel.checkpoint()
        self._entry = mountinfo.topmost_at(self._mountpoint, mountinfo.read_mounts())
        self.tuning = tune(self._entry, fast_loop=self._fast_loop is not None)
        task_status.started()

    def _report_init(self) -> None:
        """Learn when the kernel's INIT is answered, which is when its limits can be changed."""
        original: Callable[[], None] = self._operations.init

        def init() -> None:
            original()
            self._initialised.set()

        self._operations.init = init  # type: ignore[method-assign]


def tune(entry: mountinfo.MountEntry | None, *, fast_loop: bool) -> Tuning:
    """Raise the kernel's limits for this mount as far as this user may; what was set."""
    if entry is None:
        return Tuning(fast_loop=fast_loop)
    connection = mountinfo.sysfs_connection(entry)
    background = _write_number(connection / "max_background", BACKGROUND_REQUESTS_MAX)
    if background is not None:
        _write_number(connection / "congestion_threshold", CONGESTION_REQUESTS)
    return Tuning(
        read_ahead_kib=_write_number(mountinfo.sysfs_readahead(entry), READ_AHEAD_KIB),
        background_max=background,
        fast_loop=fast_loop,
    )


async def unmount(mountpoint: str) -> str | None:
    """Unmount by another process while this one serves; ``None`` when done, else the reason.

    The kernel writes back what is dirty first, which this process's loop must answer: that is
    why it is not done by a call here. Bounded by UNMOUNT_TIMEOUT_S. May be cancelled.
    """
    return await _bounded([*unmount_command(), mountpoint], UNMOUNT_TIMEOUT_S)


async def write_back(mountpoint: str) -> str | None:
    """Make the kernel hand over what it holds dirty for this mount; ``None``, or why it did not."""
    return await _bounded(["sync", "-f", mountpoint], SYNC_TIMEOUT_S)


def unmount_command() -> list[str]:
    """The program that unmounts a FUSE file system for this user."""
    return [shutil.which("fusermount3") or "fusermount3", "-u"]


async def _bounded(command: list[str], timeout_s: float) -> str | None:
    environment = {**os.environ, "LC_ALL": "C"}
    with trio.move_on_after(timeout_s):
        try:
            done = await trio.run_process(
                command,
                check=False,
                capture_stdout=True,
                capture_stderr=True,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            return f"cannot run {command[0]}: {error.strerror}"
        if done.returncode == 0:
            return None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"{command[0]} ended with status {done.returncode}"
    return f"{command[0]} did not end within {timeout_s:g} s"


def _option_text(source: str) -> str:
    """``source`` as one libfuse option value: a comma would end it, and pyfuse3 takes ASCII only."""
    return quote(source, safe="!#$&'()*+-./:;=?@[]^_`{|}~")


def _fuse_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == _DEVICE:
                found.add(int(name))
    return found


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catch what C code and its helpers print to descriptor 2; libfuse tells its reasons only there."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)

        def said() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _why_not(mountpoint: str, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return ""
    reason = lines[0].removeprefix("fuse: ").removeprefix("fusermount3: ")
    if "allow_other" in reason:
        reason = "--allow-other needs a line 'user_allow_other' in /etc/fuse.conf (or root)"
    return f"cannot mount at {mountpoint}: {reason}"


def _write_number(path: Path, value: int) -> int | None:
    """Write ``value`` to a kernel setting; what it then holds, or ``None`` where that is not permitted."""
    try:
        path.write_text(str(value))
        return int(path.read_text())
    except (OSError, ValueError) as error:
        log.debug("%s is left as it is: %s", path, error)
        return None
