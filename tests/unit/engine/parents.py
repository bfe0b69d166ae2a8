"""Children for tests: one in the same trio loop, and a real process whose store is the test's own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from s3mount.config import StoreConfig
from s3mount.engine.child import serve
from s3mount.engine.process import Child, EngineProcess
from s3mount.s3.store import Store

CONFIG = StoreConfig(bucket="any")


class LocalChild:
    """Serves ``open_store`` from a task of the test's own loop; ``kill`` cancels it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        open_store: Callable[[StoreConfig], AbstractAsyncContextManager[Store]],
    ) -> None:
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        nursery.start_soon(self._serve, open_store)

    async def _serve(
        self, open_store: Callable[[StoreConfig], AbstractAsyncContextManager[Store]]
    ) -> None:
        try:
            with self._theirs, self._scope:
                await serve(self._theirs, open_store)
        finally:
            self._ended.set()

    async def read_stderr(self) -> None:
        await trio.sleep_forever()

    def kill(self) -> None:
        self._scope.cancel()

    async def wait(self) -> str:
        await self._ended.wait()
        return "ended"

    def close(self) -> None:
        self.socket.close()


class ConnectedChild:
    """Not a child: somebody who serves at a Unix socket. For the process between two tests' ends."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)

    async def read_stderr(self) -> None:
        await trio.sleep_forever()

    def kill(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> str:
        await trio.lowlevel.checkpoint()
        return "disconnected"

    def close(self) -> None:
        self.socket.close()


def holding(store: Store) -> Callable[[StoreConfig], AbstractAsyncContextManager[Store]]:
    """An ``open_store`` that gives ``store`` and closes nothing."""

    @asynccontextmanager
    async def open_store(_: StoreConfig) -> AsyncIterator[Store]:
        await trio.lowlevel.checkpoint()
        yield store

    return open_store


class RelayedEngine:
    """Real engine processes whose store is ``store`` of this process, reached by a Unix socket.

    What the store did stays done when the process between is killed, as it would in S3.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._path = str(folder / "store.sock")
        self.pids: list[int] = []
        self.config = StoreConfig(bucket="any", endpoint_url=f"unix:{self._path}")

    async def listen(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self._path)
            listener.listen()
            listener.setblocking(False)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    nursery.start_soon(self._serve, listener.accept()[0])

    async def _serve(self, sock: socket.socket) -> None:
        with sock:
            await serve(sock, holding(self._store))

    def spawn(self) -> Child:
        child = EngineProcess(relay_command())
        self.pids.append(child.pid)
        return child

    def kill_newest(self, signal_number: int) -> None:
        os.kill(self.pids[-1], signal_number)


def relay_command() -> Sequence[str]:
    return [sys.executable, "-P", "-m", "tests.unit.engine.relay_child"]
