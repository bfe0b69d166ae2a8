"""The whole life of a mount's process, from checked settings to its exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from s3mount import crashpoints, logs
from s3mount.app import settings
from s3mount.app.folders import be_private, check_writable
from s3mount.app.lifetime import Lifetime, Parts
from s3mount.config import MountConfig, RunConfig
from s3mount.daemon import client, protocol, registry
from s3mount.daemon.launch import Reporter
from s3mount.daemon.ownership import StateLock, read_owner
from s3mount.errors import LocalDiskError, StateInUseError
from s3mount.fuse import preflight

Build: TypeAlias = Callable[[MountConfig, Reporter], AbstractAsyncContextManager[Parts]]

TAKEOVER_TIMEOUT_S = 10.0
"""How long a mount waits for an earlier one's process that was only sending what was left."""


def run_mount(config: MountConfig, run: RunConfig, build: Build) -> int:
    """Check, mount, serve until the mount ends; the exit status. Blocks; once per process.

    ``config.mountpoint``, ``state_dir`` and ``cache_dir`` are absolute. Errors are told in one line,
    to the parent that waits or on stderr; a traceback goes only to the log.
    """
    reporter = Reporter(run.ready_fd)
    be_private()
    log_path = _log_path(config, run)
    # A log file takes descriptor 2 along.
    terminal = os.dup(2)
    try:
        return _run(config, run, build, reporter, log_path)
    except Exception as error:  # noqa: BLE001  the last stop: what reaches it becomes one line
        message, exit_code = logs.explain(error, log_path)
        if not reporter.failed(message, exit_code) and run.foreground:
            with contextlib.suppress(OSError):
                os.write(terminal, f"s3mount: {message}\n".encode())
        return exit_code
    finally:
        os.close(terminal)
        reporter.close()
        logging.shutdown()


def _run(
    config: MountConfig, run: RunConfig, build: Build, reporter: Reporter, log_path: Path | None
) -> int:
    if log_path is None:
        logs.to_terminal(run.log_level, run.log_format)
    crashpoints.arm()
    reporter.step("looking at the mount point")
    others = config.allow_other or "allow_root" in run.kernel_options
    preflight.check(config, nonempty=run.nonempty, wants_others=others)
    with take_state(Path(config.state_dir), config.mountpoint, run.source) as lock:
        check_writable("state", Path(config.state_dir))
        check_writable("cache", Path(config.cache_dir))
        if config.past is None:
            settings.remember(config)
        if log_path is not None:
            logs.to_file(log_path, run.log_level, run.log_format)
        lifetime = Lifetime(
            config,
            run,
            lock=lock,
            reporter=reporter,
            log_path=str(log_path or ""),
            build=partial(build, config, reporter),
        )
        if not run.foreground:
            # A mount must not keep the file system busy that it was started from.
            os.chdir("/")
        try:
            return trio.run(lifetime.run, strict_exception_groups=True)
        finally:
            if not lifetime.was_mounted:
                with contextlib.suppress(LocalDiskError):
                    lock.restore_note()


def take_state(folder: Path, mountpoint: str, source: str) -> StateLock:
    """Become the owner of a state folder.

    A process whose mount has ended, and that only sends what is left, is asked to leave that to us.
    Raises StateInUseError and LocalDiskError.
    """
    try:
        return StateLock(folder, mountpoint, source)
    except StateInUseError:
        owner = read_owner(folder)
        if owner is None or owner.phase != "draining":
            raise
        found = registry.find(owner.mountpoint, os.geteuid())
        if found is None or found[1].pid != owner.pid:
            raise
    with client.ControlClient(*found) as connection:
        connection.ask(protocol.Stop())
    deadline = time.monotonic() + TAKEOVER_TIMEOUT_S
    while True:
        try:
            return StateLock(folder, mountpoint, source)
        except StateInUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _log_path(config: MountConfig, run: RunConfig) -> Path | None:
    """Where to log: the file asked for; else stderr in the foreground, the state folder behind it."""
    if run.log_file:
        return Path(run.log_file)
    return None if run.foreground else Path(config.state_dir) / "log"
