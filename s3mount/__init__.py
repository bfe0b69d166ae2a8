"""An S3 bucket as a directory that people can trust with the only copy of their data.

``open``, ``open_sync``, ``Upload`` and the other names of ``NAMES`` are the Python API (docs/API.md). They are
loaded when first asked for: most commands need no trio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from s3mount.version import __version__ as __version__

if TYPE_CHECKING:
    from s3mount.api.blocking import BlockingBucket as BlockingBucket
    from s3mount.api.blocking import open_sync as open_sync
    from s3mount.api.bucket import Bucket as Bucket
    from s3mount.api.bucket import Upload as Upload
    from s3mount.api.bucket import open_bucket as open
    from s3mount.api.outcomes import SomeFailedError as SomeFailedError
    from s3mount.api.packs import BlockingPackWriter as BlockingPackWriter
    from s3mount.api.packs import PackWriter as PackWriter
    from s3mount.config import TimeoutSettings as TimeoutSettings
    from s3mount.customer_key import CustomerKey as CustomerKey
    from s3mount.errors import S3MountError as S3MountError
    from s3mount.refs import Condition as Condition
    from s3mount.refs import ObjectHeaders as ObjectHeaders


__all__ = [
    "BlockingBucket",
    "BlockingPackWriter",
    "Bucket",
    "Condition",
    "CustomerKey",
    "ObjectHeaders",
    "PackWriter",
    "S3MountError",
    "SomeFailedError",
    "TimeoutSettings",
    "Upload",
    "__version__",
    "open",
    "open_sync",
]

NAMES = {
    "open": "s3mount.api.bucket:open_bucket",
    "Bucket": "s3mount.api.bucket:Bucket",
    "Upload": "s3mount.api.bucket:Upload",
    "open_sync": "s3mount.api.blocking:open_sync",
    "BlockingBucket": "s3mount.api.blocking:BlockingBucket",
    "SomeFailedError": "s3mount.api.outcomes:SomeFailedError",
    "PackWriter": "s3mount.api.packs:PackWriter",
    "BlockingPackWriter": "s3mount.api.packs:BlockingPackWriter",
    "TimeoutSettings": "s3mount.config:TimeoutSettings",
    "CustomerKey": "s3mount.customer_key:CustomerKey",
    "S3MountError": "s3mount.errors:S3MountError",
    "Condition": "s3mount.refs:Condition",
    "ObjectHeaders": "s3mount.refs:ObjectHeaders",
}
"""Where the names of the Python API are."""


def __getattr__(name: str) -> Any:
    try:
        module, _, attribute = NAMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
