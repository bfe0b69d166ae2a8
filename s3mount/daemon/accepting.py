"""Takes the connections of a listening socket, so many at a time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.background import Background

log = logging.getLogger(__name__)

PAUSE_S = 1.0


async def serve_each(
    listener: trio.socket.SocketType,
    serve: Callable[[trio.socket.SocketType], Awaitable[None]],
    slots: trio.CapacityLimiter,
) -> None:
    """Run ``serve`` for each connection until cancelled, no more at once than ``slots`` has; it is closed behind it."""

    async def one(connection: trio.socket.SocketType, token: object) -> None:
        try:
            with connection:
                await serve(connection)
        finally:
            slots.release_on_behalf_of(token)

    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        while True:
            await slots.acquire_on_behalf_of(token := object())
            try:
                connection, _ = await listener.accept()
            except OSError as error:
                # No descriptor is free, or the caller is gone already.
                slots.release_on_behalf_of(token)
                log.warning("a client cannot be answered now: %s", error.strerror)
                await trio.sleep(PAUSE_S)
            else:
                background.start(one, connection, token)
