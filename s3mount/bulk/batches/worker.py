"""``python -m s3mount.bulk.batches.worker --fd N``: does what comes over a socket, one Task after the other.

Its stores stay open from one to the next. It ends with whoever holds the other end, in the middle of a Task too.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import msgspec
import trio

from s3mount import logs
from s3mount.bulk.batches.wire import GoneError, Line, Lines, Task, Verified
from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.engine.signals import leave_signals_to_parent
from s3mount.errors import S3MountError
from s3mount.manifest.buckets import Buckets, open_buckets
from s3mount.manifest.verifying import Problem, Verification, verify
from s3mount.s3.store import Store

OpenStore = Callable[[StoreConfig], AbstractAsyncContextManager[Store]]


async def perform(task: Task, buckets: Buckets[str, Store]) -> Verified:
    """Verify the entries of ``task``. Raises nothing: each failure is told."""
    done = Verified(Verification(), [])

    def report(problem: Problem) -> None:
        done.problems.append(Line.of(problem))

    try:
        await verify(task.entries(), buckets, report, done.sums, content=task.content)
    except S3MountError as error:
        done.sums.stopped = " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  one batch's fault; who sent it decides what it means
        done.failed = f"{type(error).__name__}: {error}"
    return done


async def serve(connected: socket.socket, open_store: OpenStore = EngineClient) -> None:
    """Do each Task that comes, and answer with its Verified, until the other end is gone."""
    lines = Lines(connected)
    send, receive = trio.open_memory_channel[Task](1)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            try:
                while True:
                    await send.send(msgspec.json.decode(await lines.receive(), type=Task))
            except GoneError:
                nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        task = await receive.receive()
        config = task.config

        def open_one(bucket: str) -> AbstractAsyncContextManager[Store]:
            return open_store(msgspec.structs.replace(config, bucket=bucket))

        with suppress(GoneError):
            async with open_buckets(open_one) as buckets:
                while True:
                    done = await perform(task, buckets)
                    await lines.send(msgspec.json.encode(done))
                    task = await receive.receive()
        nursery.cancel_scope.cancel()
    lines.close()


def main() -> None:
    """Serve until the end."""
    leave_signals_to_parent()
    logs.to_terminal("error")
    trio.run(serve, socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    main()
