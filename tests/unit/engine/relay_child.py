"""An engine process whose store is another one's, behind a Unix socket named by the endpoint URL."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager

from s3mount.config import StoreConfig
from s3mount.engine.child import main
from s3mount.engine.client import EngineClient
from s3mount.s3.store import Store
from tests.unit.engine.parents import ConnectedChild


def open_store(config: StoreConfig) -> AbstractAsyncContextManager[Store]:
    assert config.endpoint_url is not None
    path = config.endpoint_url.removeprefix("unix:")
    return EngineClient(config, spawn=lambda: ConnectedChild(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], open_store))
