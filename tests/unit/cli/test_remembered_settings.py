"""``mount.json``: what is pending is sent as the last mount would have sent it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from s3mount.app import settings
from s3mount.config import MountConfig, StoreConfig
from s3mount.errors import LocalDiskError
from s3mount.refs import ObjectHeaders

NEW = ObjectHeaders(
    storage_class="GLACIER_IR",
    encryption="aws:kms",
    kms_key_id="arn:key",
    bucket_key="true",
    acl={"x-amz-acl": "bucket-owner-full-control"},
)


def config(folder: Path) -> MountConfig:
    store = StoreConfig(bucket="data", new_objects=NEW)
    return MountConfig(store=store, mountpoint="/mnt", state_dir=str(folder))


def test_what_new_objects_get_is_remembered(tmp_path: Path) -> None:
    settings.remember(config(tmp_path))
    assert settings.recall(tmp_path) == config(tmp_path)


def test_a_file_that_names_each_thing_singly_is_read(tmp_path: Path) -> None:
    told = msgspec.to_builtins(config(tmp_path))
    del told["store"]["new_objects"]
    told["storage_class"] = "GLACIER_IR"
    told["store"] |= {"sse": "aws:kms", "sse_kms_key_id": "arn:key", "bucket_key": True}
    told["store"] |= {"acl": "bucket-owner-full-control"}
    (tmp_path / settings.NAME).write_text(json.dumps(told))
    assert settings.recall(tmp_path) == config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"store": 1}'])
def test_a_file_that_is_none_of_ours_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / settings.NAME).write_text(text)
    with pytest.raises(LocalDiskError, match="mount the bucket again"):
        settings.recall(tmp_path)
