"""The machine's boot id: what was not flushed to the disk before this boot may be lost."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """Names the time since the machine was started; never empty."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or "unknown"
    except OSError:
        return "unknown"
