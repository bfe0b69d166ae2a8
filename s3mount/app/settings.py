"""The settings of a mount beside its state, so that what is pending can be sent without the command line."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from s3mount.config import MountConfig
from s3mount.errors import LocalDiskError

log = logging.getLogger(__name__)

NAME = "mount.json"


def remember(config: MountConfig) -> None:
    """Write ``config`` into its state folder; it holds no credentials. Raises LocalDiskError.

    On a full disk what an earlier mount wrote stays: what is pending there must be sent to make room.
    """
    path = Path(config.state_dir) / NAME
    fresh = path.with_suffix(".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(config)))
        fresh.rename(path)
    except OSError as error:
        if error.errno == errno.ENOSPC and path.exists():
            fresh.unlink(missing_ok=True)
            log.warning("the settings of this mount are not remembered: %s", error.strerror)
            return
        raise LocalDiskError(f"{path} cannot be written: {error.strerror}") from error


def recall(folder: Path) -> MountConfig:
    """The settings of the last mount of this state folder, for this very place. Raises LocalDiskError."""
    path = folder / NAME
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        config = msgspec.convert(_with_new_objects(told), MountConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise LocalDiskError(
            f"{folder} does not tell which bucket it belongs to ({error}); mount the bucket again instead"
        ) from error
    return msgspec.structs.replace(config, state_dir=str(folder))


def _with_new_objects(told: dict[str, Any]) -> dict[str, Any]:
    """What a mount of before wrote singly, as ``StoreConfig.new_objects``: what is pending is to be sent with it."""
    store = told.get("store")
    if not isinstance(store, dict) or "new_objects" in store:
        return told
    acl = store.get("acl")
    new = {
        "storage_class": told.get("storage_class"),
        "encryption": store.get("sse"),
        "kms_key_id": store.get("sse_kms_key_id"),
        "bucket_key": "true" if store.get("bucket_key") else None,
        "acl": {"x-amz-acl": acl} if acl else None,
    }
    return told | {"store": store | {"new_objects": new}}
