"""Things that go wrong at the store, for the transfer tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from s3mount.testing.memory_store import MemoryStore


class Meddler:
    """Calls ``before`` and ``after`` hooks; remembers how many calls of each name ran at once."""

    def __init__(
        self,
        before: Callable[[str, Mapping[str, object]], Awaitable[None]] | None = None,
        after: Callable[[str, Mapping[str, object]], Awaitable[None]] | None = None,
    ) -> None:
        self._before = before
        self._after = after
        self.running = 0
        self.most_running = 0

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(0.01)
            if self._before is not None:
                await self._before(operation, arguments)
        except BaseException:
            self.running -= 1
            raise

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        self.running -= 1
        await trio.lowlevel.checkpoint()
        if self._after is not None:
            await self._after(operation, arguments)


async def unfinished(store: MemoryStore) -> int:
    """How many multipart uploads are open."""
    return len(await store.observer().list_uploads(""))
