"""LocalStack's S3 provider, the server that `s3mount demo` embeds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from s3mount.demo.server import DemoServer
from tests.servers import S3Server


@contextlib.contextmanager
def running_localstack(folder: Path) -> Iterator[S3Server]:
    """A server of its own, with its data below ``folder``, while the block lasts."""
    with DemoServer(data_dir=folder) as demo:
        yield S3Server(
            name="localstack",
            endpoint_url=demo.endpoint_url,
            access_key=demo.access_key,
            secret_key=demo.secret_key,
            region=demo.region,
        )
