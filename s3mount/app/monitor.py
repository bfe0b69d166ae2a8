"""The process that tells of a mount by HTTP (``--metrics``): begun anew when it ends, gone with the mount."""

from __future__ import annotations

import subprocess
import sys

import trio

from s3mount.errors import MountError


async def run_monitor(mountpoint: str, address: str) -> None:
    """Keep ``s3mount metrics`` running for one mount until cancelled. Raises MountError when it ends by itself."""
    command = [sys.executable, "-P", "-m", "s3mount", "metrics", mountpoint]
    done = await trio.run_process(
        [*command, "--listen", address, "--with-parent"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        capture_stderr=True,
        check=False,
    )
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    raise MountError(f"nothing listens at {address}: {said or f'status {done.returncode}'}")
