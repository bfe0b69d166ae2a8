"""Sending what a state folder holds, without a mount."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import trio

from s3mount.app.folders import be_private, check_writable
from s3mount.app.parts import build_parts
from s3mount.config import MountConfig
from s3mount.daemon.launch import Reporter
from s3mount.daemon.ownership import StateLock
from s3mount.daemon.protocol import Progress
from s3mount.errors import S3MountError

LOOK_S = 0.5

Watch: TypeAlias = Callable[[Progress], bool]
"""Told how far the sending is; ``False`` gives up."""


class Outcome(NamedTuple):
    """What is left, in numbers and as status lists it, and why, where S3 said something."""

    changes: int
    size_bytes: int
    pending: list[dict[str, Any]]
    trouble: str


def recover(config: MountConfig, source: str, watch: Watch) -> Outcome:
    """Send everything in ``config.state_dir``, as a mount that is being ended does. Blocks.

    Interrupted or killed, it leaves the rest as it is. Raises S3MountError: StateInUseError where a mount
    owns the folder, and what keeps the bucket from being used.
    """
    folder = Path(config.state_dir)
    be_private()
    with StateLock(folder, config.mountpoint, source) as lock:
        lock.note("draining")
        check_writable("cache", Path(config.cache_dir))
        config = msgspec.structs.replace(config, read_only=False)
        outcome = trio.run(_recover, config, watch, strict_exception_groups=True)
        lock.note("ended", outcome.changes, outcome.size_bytes)
    return outcome


async def _recover(config: MountConfig, watch: Watch) -> Outcome:
    trouble = ""
    async with build_parts(config, Reporter(None)) as parts:
        filesystem = parts.filesystem
        async with trio.open_nursery() as nursery:
            await nursery.start(filesystem.run)
            with trio.CancelScope() as sending:

                async def look() -> None:
                    while True:
                        moved = (await parts.statistics()).get("bytes_written", 0.0)
                        if not watch(Progress(*filesystem.pending(), moved, filesystem.trouble())):
                            sending.cancel()
                        await trio.sleep(LOOK_S)

                nursery.start_soon(look)
                try:
                    await filesystem.wait_uploaded()
                except S3MountError as error:
                    trouble = str(error)
            told = (await filesystem.status())["pending"]["list"]
            outcome = Outcome(*filesystem.pending(), told, trouble)
            nursery.cancel_scope.cancel()
    return outcome
