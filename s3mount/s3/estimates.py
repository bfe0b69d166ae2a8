"""What was learnt of an endpoint's speed, kept from one run to the next: a small JSON file for each endpoint."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from pathlib import Path

import msgspec

from s3mount.config import StoreConfig
from s3mount.flow.timeouts import Estimates

log = logging.getLogger(__name__)


def file_of(config: StoreConfig, base_url: str) -> Path | None:
    """Where the estimates of an endpoint lie, for all its buckets; ``None`` where none are kept."""
    if not config.estimates_dir:
        return None
    endpoint = base_url.replace(f"://{config.bucket}.", "://")
    return Path(config.estimates_dir) / f"{hashlib.sha256(endpoint.encode()).hexdigest()[:16]}.json"


def load(path: Path | None) -> Estimates:
    """What the last run knew; nothing where that cannot be read, as it is only a head start."""
    if path is None:
        return Estimates()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Estimates)
    except FileNotFoundError:
        return Estimates()
    except (OSError, msgspec.MsgspecError) as error:
        log.info("what was learnt of the store's speed is not read: %s", error)
        return Estimates()


def save(path: Path | None, estimates: Estimates) -> None:
    """Keep ``estimates`` for the next run; of several processes the last one counts. Never raises OSError."""
    if path is None or not (estimates.latency or estimates.s_per_byte):
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(estimates)))
        os.replace(new, path)
    except OSError as error:
        log.info("what was learnt of the store's speed is not kept: %s", error)
        with contextlib.suppress(OSError):
            new.unlink()
