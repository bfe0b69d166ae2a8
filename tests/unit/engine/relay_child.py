"""An engine process whose store is another one's, behind a Unix socket named by the endpoint URL."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractAsyncContextManager

import trio

from s3mount.config import StoreConfig
from s3mount.engine.child import main
from s3mount.engine.client import EngineClient
from s3mount.refs import Key, ObjectInfo, VersionId
from s3mount.s3.store import Store
from tests.unit.engine.parents import ConnectedChild


class Relay(EngineClient):
    """Passes everything on; looking at ``please warn`` also logs a warning from a thread."""

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        if key == "please warn":
            logger = logging.getLogger("s3mount.relay")
            await trio.to_thread.run_sync(logger.warning, "a warning from %s", "a thread")
        return await super().head(key, version_id=version_id)


def open_store(config: StoreConfig) -> AbstractAsyncContextManager[Store]:
    assert config.endpoint_url is not None
    path = config.endpoint_url.removeprefix("unix:")
    return Relay(config, spawn=lambda: ConnectedChild(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], open_store))
