"""Batches that the workers of a Dask cluster perform. Dask is imported when a cluster is named."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from s3mount.bulk.batches.running import Worker
from s3mount.bulk.batches.wire import Verified
from s3mount.engine.process import child_command
from s3mount.errors import EngineError, UsageError
from s3mount.manifest.verifying import Verification
from s3mount.version import __version__

CONNECT_S = 10

_kept = threading.local()
"""The process that performs batches for a thread of a Dask worker, and the stream to it."""


def perform(version: str, task: bytes) -> bytes:
    """On a Dask worker: have a Task done by a process that is kept for the next one; its Verified. Blocks.

    Raises OSError where it ends in between.
    """
    if version != __version__:
        why = f"{socket.gethostname()} has s3mount {__version__}, and this is {version}: install the same"
        return msgspec.json.encode(Verified(Verification(stopped=why), []))
    stream = getattr(_kept, "stream", None) or _start()
    try:
        stream.write(task + b"\n")
        stream.flush()
        answer: bytes = stream.readline()
        if not answer.endswith(b"\n"):
            raise OSError("the worker ended in the middle of it")
    except OSError:
        _kept.stream = None
        _kept.process.kill()
        _kept.process.wait()
        raise
    return answer


def _start() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*child_command("s3mount.bulk.batches.worker"), "--fd", str(theirs.fileno())]
        _kept.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        _kept.stream = ours.makefile("rwb")
    return _kept.stream


class _DaskWorker:
    def __init__(self, client: Any, threads: trio.CapacityLimiter) -> None:
        self._client = client
        self._threads = threads

    async def perform(self, task: bytes) -> Verified:
        """Have it done by whichever is free; Dask gives it to another where one dies. Raises EngineError."""

        def ask() -> bytes:
            answer: bytes = self._client.submit(perform, __version__, task, pure=False).result()
            return answer

        try:
            answer = await trio.to_thread.run_sync(
                ask, abandon_on_cancel=True, limiter=self._threads
            )
        except CancelledError:
            raise EngineError("the scheduler of the Dask cluster is gone") from None
        except ImportError as error:
            raise EngineError(f"the workers have no s3mount like this one: {error}") from error
        except Exception as error:  # noqa: BLE001  Dask raises its own types, and what ``perform`` raised
            why = " ".join(str(error).split()) or type(error).__name__
            return Verified(Verification(), [], failed=why)
        return msgspec.json.decode(answer, type=Verified)


@asynccontextmanager
async def dask_workers(spec: str) -> AsyncIterator[list[Worker]]:
    """One for each thread that the workers of the cluster ``spec`` have at present. Raises UsageError, EngineError."""
    try:
        import distributed
    except ImportError:
        raise UsageError(
            f"--workers {spec}: Dask is not installed: pip install 's3mount[dask]'"
        ) from None
    kind, _, rest = spec.partition(":")
    where: dict[str, Any] = {"address": f"tcp:{rest}" if kind == "dask" else spec}
    if kind == "scheduler-file":
        where = {"scheduler_file": rest}
    # What it tells of lost connections is told by the error that follows.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def connect() -> Any:
        make: Any = distributed.Client
        return make(**where, timeout=CONNECT_S, set_as_default=False, name="s3mount")

    try:
        client = await trio.to_thread.run_sync(connect)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise EngineError(f"--workers {spec}: no scheduler answers: {error}") from error
    try:
        count = sum((await trio.to_thread.run_sync(client.nthreads)).values())
        if not count:
            raise EngineError(f"--workers {spec}: the cluster has no workers")
        threads = trio.CapacityLimiter(count)
        yield [_DaskWorker(client, threads) for _ in range(count)]
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(client.close, CONNECT_S)
