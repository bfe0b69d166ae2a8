"""The engine process: opens one store and answers requests for it until its parent lets go.

It holds nothing that must outlive it. Whoever kills it at any moment costs the parent a delay.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import trio

from s3mount import crashpoints, gc_tuning
from s3mount.config import StoreConfig
from s3mount.crashpoints import crashpoint
from s3mount.engine import messages
from s3mount.engine.channel import BrokenStreamError, Channel
from s3mount.engine.dispatch import dispatch
from s3mount.engine.messages import ErrorRecord, Failed, Reply, Request, ToChild, record_of
from s3mount.engine.signals import leave_signals_to_parent
from s3mount.errors import S3MountError, ServerFaultError, unwrapped
from s3mount.s3.store import Store
from s3mount.turns import Turns

log = logging.getLogger(__name__)

OpenStore: TypeAlias = Callable[[StoreConfig], AbstractAsyncContextManager[Store]]
"""Makes the store; entering the context may raise an S3MountError, which every call then gets."""

REQUESTS_MAX = 2048
"""Requests accepted at once. The client asks for fewer; those that it gave up may still be ending."""

REOPEN_DELAY_S = 1.0
"""How long an error at opening the store is repeated to all callers before opening is tried again."""

PROGRESS_STEP_BYTES = 512 << 10
"""Progress of this much is reported at once..."""

PROGRESS_DELAY_S = 0.005
"""...and less than that after this delay, so that a fetch costs a message per step, not per recv."""

NICE = 10
NICE_IN_BACKGROUND = 19
"""The least; the kernel derives the least priority at the disk from it (ioprio_set(2))."""
PR_SET_PDEATHSIG = 1


class Server:
    """Answers one parent over ``channel``. ``run`` is its whole life."""

    def __init__(
        self,
        channel: Channel[ToChild],
        open_store: OpenStore,
        on_started: Callable[[StoreConfig], None] = lambda config: None,
        turns: Turns | None = None,
    ) -> None:
        self._channel = channel
        self._turns = turns
        self._open_store = open_store
        self._on_started = on_started
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._store: Store | None = None
        self._refusal: ErrorRecord | None = None
        self._decided = trio.Event()
        self._wanted = trio.Event()
        self._below_bound = trio.lowlevel.ParkingLot()
        self._stopping = trio.Event()
        self._progress = _ProgressReporter(channel)

    async def run(self) -> None:
        """Serve until the parent closes its end, or says Stop and all requests are answered."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._channel.send_forever)
            nursery.start_soon(self._progress.run)
            nursery.start_soon(self._finish_when_told)
            try:
                await self._channel.receive_forever(self._handle, self._pause)
            except BrokenStreamError as error:
                log.error("the parent sent no message: %s", error)
            nursery.cancel_scope.cancel()

    async def _finish_when_told(self) -> None:
        await self._stopping.wait()
        while self._scopes:
            await self._below_bound.park()
        await self._channel.drain()
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def _handle(self, message: ToChild) -> None:
        assert self._nursery is not None
        if isinstance(message, Request):
            scope = self._scopes[message.id] = trio.CancelScope()
            self._nursery.start_soon(self._serve, message, scope)
        elif isinstance(message, messages.Cancel):
            if message.id in self._scopes:
                self._scopes[message.id].cancel()
        elif isinstance(message, messages.Ping):
            self._channel.post(messages.Pong())
        elif isinstance(message, messages.Start):
            logging.getLogger("s3mount").setLevel(message.log_level)
            self._nursery.start_soon(self._keep_store, message.config)
        else:
            self._stopping.set()

    async def _pause(self) -> None:
        while len(self._scopes) >= REQUESTS_MAX:
            await self._below_bound.park()

    async def _serve(self, request: Request, scope: trio.CancelScope) -> None:
        reply: Reply = messages.Cancelled(request.id)
        with scope:
            reply = await self._outcome(request)
        self._progress.forget(request.id)
        await self._channel.room()
        self._post(reply)
        del self._scopes[request.id]
        self._below_bound.unpark_all()

    async def _outcome(self, request: Request) -> Reply:
        try:
            if self._store is None:
                refusal = await self._wait_for_store()
                if refusal is not None:
                    return Failed(request.id, refusal)
            assert self._store is not None

            def report(done: int) -> None:
                self._progress.report(request.id, done)

            crashpoint("engine: request received")
            reply = await dispatch(self._store, request, report)
            crashpoint("engine: request done")
            return self._with_turns(reply)
        except S3MountError as error:
            return Failed(request.id, record_of(error))
        except Exception as error:  # noqa: BLE001 - a fault in one request must not end the others
            single = unwrapped(error)
            if isinstance(single, S3MountError):
                return Failed(request.id, record_of(single))
            return Failed(request.id, _fault(f"{type(request).__name__} request", error))

    def _with_turns(self, reply: Reply) -> Reply:
        """Counters are told together with how long the turns of this loop were."""
        if self._turns is None or not isinstance(reply, messages.Counted):
            return reply
        told = self._turns.statistics()
        mine = {f"engine_{name}": told[name] for name in ("turn_max_s", "turn_cpu_max_s")}
        return messages.Counted(reply.id, reply.values | mine)

    def _post(self, reply: Reply) -> None:
        try:
            self._channel.post(reply, alone=len(self._scopes) == 1)
        except (ValueError, TypeError) as error:  # what a store must not return: say so, and go on
            self._channel.post(Failed(reply.id, _fault("answer that cannot be sent", error)))

    def _tell_outage(self, reason: str) -> None:
        self._channel.post(messages.Reachability(reason))

    async def _wait_for_store(self) -> ErrorRecord | None:
        """``None`` when the store is open; else why it is not."""
        self._wanted.set()
        await self._decided.wait()
        return self._refusal

    async def _keep_store(self, config: StoreConfig) -> None:
        """Open the store and hold it open. While that fails, try again when somebody asks."""
        while True:
            try:
                async with self._open_store(config) as store:
                    self._store = store
                    store.on_outage = self._tell_outage
                    self._refusal = None
                    self._decided.set()
                    self._on_started(config)
                    await trio.sleep_forever()
            except Exception as error:
                if self._store is not None:
                    raise
                single = unwrapped(error)
                if isinstance(single, S3MountError):
                    self._refusal = record_of(single)
                else:
                    self._refusal = _fault("start of the S3 client", error)
            self._decided.set()
            self._on_started(config)
            await trio.sleep(REOPEN_DELAY_S)
            self._decided = trio.Event()
            self._wanted = trio.Event()
            await self._wanted.wait()


class _ProgressReporter:
    """Tells the parent how far its fetches are, seldom enough to cost nothing and soon enough."""

    def __init__(self, channel: Channel[ToChild]) -> None:
        self._channel = channel
        self._told: dict[int, int] = {}
        self._late: dict[int, int] = {}
        self._some_late = trio.Event()

    def report(self, request_id: int, done: int) -> None:
        """The first ``done`` bytes are there."""
        if done - self._told.get(request_id, 0) >= PROGRESS_STEP_BYTES:
            self._late.pop(request_id, None)
            self._tell(request_id, done)
        else:
            self._late[request_id] = done
            self._some_late.set()

    def forget(self, request_id: int) -> None:
        """The request has ended; its reply says the rest."""
        self._told.pop(request_id, None)
        self._late.pop(request_id, None)

    async def run(self) -> None:
        """Tell what is late, until cancelled."""
        while True:
            await self._some_late.wait()
            await trio.sleep(PROGRESS_DELAY_S)
            self._some_late = trio.Event()
            late, self._late = self._late, {}
            for request_id, done in late.items():
                self._tell(request_id, done)

    def _tell(self, request_id: int, done: int) -> None:
        self._told[request_id] = done
        self._channel.post(messages.Progress(request_id, done))


class _ForwardingHandler(logging.Handler):
    """Sends log records to the parent, from whatever thread they arise in."""

    def __init__(self, channel: Channel[ToChild], token: trio.lowlevel.TrioToken) -> None:
        super().__init__()
        self._channel = channel
        self._token = token

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; while the parent is too slow to take records, they are dropped."""
        try:
            text = self.format(record).encode(errors="backslashreplace").decode()
            message = messages.Log(record.levelno, record.name, text, getattr(record, "about", {}))
            self._token.run_sync_soon(self._send, message)
        except trio.RunFinishedError:
            return
        except Exception:  # noqa: BLE001 - logging's own way with records that cannot be written
            self.handleError(record)

    def _send(self, message: messages.Log) -> None:
        if not self._channel.is_full:
            self._channel.post(message)


async def serve(sock: socket.socket, open_store: OpenStore) -> None:
    """Answer the parent at the other end of ``sock`` until it lets go. Closes nothing."""
    await Server(Channel(sock, messages.decoder_for_child()), open_store).run()


async def _serve_and_log(sock: socket.socket, open_store: OpenStore) -> None:
    channel = Channel(sock, messages.decoder_for_child())
    handler = _ForwardingHandler(channel, trio.lowlevel.current_trio_token())
    root = logging.getLogger()
    root.addHandler(handler)
    turns = Turns()

    def started(config: StoreConfig) -> None:
        _settle_down(NICE_IN_BACKGROUND if config.background else NICE)
        # What the start itself takes is not measured; one that was added before stays as it is.
        trio.lowlevel.add_instrument(turns)

    try:
        await Server(channel, open_store, started, turns).run()
    finally:
        root.removeHandler(handler)


def main(arguments: Sequence[str], open_store: OpenStore | None = None) -> int:
    """The process's main function; its exit status. ``--fd N`` is the inherited socket."""
    parser = argparse.ArgumentParser(prog="s3mount.engine")
    parser.add_argument("--fd", type=int, required=True)
    sock = socket.socket(fileno=parser.parse_args(arguments).fd)
    sock.set_inheritable(False)
    leave_signals_to_parent()
    crashpoints.arm()
    _die_with_parent()
    _offer_to_the_oom_killer()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    logging.captureWarnings(True)
    try:
        trio.run(_serve_and_log, sock, open_store or _open_s3)
    except BaseException:  # noqa: BLE001 - stderr is a pipe into the parent's log
        traceback.print_exc()
        return 1
    finally:
        sock.detach()  # it closes when the process is gone, so that its end says how it ended
    return 0


def _open_s3(config: StoreConfig) -> AbstractAsyncContextManager[Store]:
    from s3mount.s3.client import S3Store  # slow to import; the parent is answered meanwhile

    return S3Store(config)


def _settle_down(least_nice: int) -> None:
    """From the start to the work: what is loaded stays, and the processor is the parent's first.

    The start itself runs at the parent's priority, since somebody waits for it (0.45 s of processor
    time; at nice 10 on a busy machine 1.2 s). Threads have priorities of their own on Linux, so all
    that are there get the new one; later ones inherit it. A sandbox that refuses is obeyed.
    """
    gc_tuning.spare_what_is_loaded()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            nice = max(least_nice, os.getpriority(os.PRIO_PROCESS, int(thread)))
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)


def _offer_to_the_oom_killer() -> None:
    """When memory runs out this process goes before its parent, who can replace it."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        file.write(b"%d" % min(1000, int(file.read()) + 300))


def _die_with_parent() -> None:
    """SIGKILL when the parent dies, even if this process's loop hangs and sees no end of stream."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _fault(what: str, error: BaseException) -> ErrorRecord:
    """Log an error that must not happen, with its traceback; the record for whoever asked."""
    log.error("the engine failed in a %s", what, exc_info=error)
    return record_of(ServerFaultError(f"internal error in a {what}: {type(error).__name__}"))
