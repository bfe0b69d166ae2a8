"""The engine's supervisor: starts the child process, sends it the calls, starts the next one when it dies.

Every call that is under way stands in one table. A new child is sent all of them again, so a
death costs the callers a delay and nothing else. What a repeated call may mean is the business
of ``client.py``, which sees ``Call.resends``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NoReturn

import outcome
import trio

from s3mount.background import attempt
from s3mount.config import StoreConfig
from s3mount.engine import messages
from s3mount.engine.channel import BrokenStreamError, Channel
from s3mount.engine.messages import Failed, Reply, Request, ToParent, error_of, not_utf8
from s3mount.engine.process import Child, Spawn
from s3mount.errors import EngineError

log = logging.getLogger(__name__)

CALLS_MAX = 512
"""Calls under way at once; more wait here. Four for each of the store's connections."""

DEATHS_MAX = 5
"""Deaths in a row, with no answer in between, after which calls fail with EngineError."""

CALL_DEATHS_MAX = 8
"""Deaths that one call may live through: it may be the one that kills."""

LONG_LIFE_S = 60.0
"""A child that lived this long did not die of its start."""

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 5.0

TICK_S = 5.0
SILENT_TICKS_MAX = 12
"""Ticks with calls waiting and no message at all, pongs included, after which a child is killed.
Ticks are counted and not seconds, so that a process that was stopped and goes on kills nobody."""

CANCEL_TICKS_MAX = 6
"""Ticks that a child may take to let go of the file of a cancelled call."""


class Call:
    """One request and who waits for its reply."""

    __slots__ = (
        "cancel_ticks",
        "deaths",
        "holds_file",
        "life",
        "on_progress",
        "progressed",
        "raise_cancel",
        "request",
        "resends",
        "task",
    )

    def __init__(
        self,
        request: Request,
        *,
        holds_file: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.request = request
        self.holds_file = holds_file
        """The child reads or writes a local file for it: a cancelled caller waits until it lets go."""
        self.on_progress = on_progress
        self.progressed = 0
        self.task: trio.lowlevel.Task | None = None
        self.life = 0
        """The child that it was last sent to; 0: none yet."""
        self.resends = 0
        self.deaths = 0
        self.raise_cancel: Callable[[], NoReturn] | None = None
        self.cancel_ticks = 0


class EngineSupervisor:
    """One child at a time, for as long as ``run`` runs."""

    def __init__(self, config: StoreConfig, spawn: Spawn) -> None:
        self.config = config
        """What every later child is started with."""
        self._spawn = spawn
        self._calls: dict[int, Call] = {}
        self.greeting: Request | None = None
        """What every later child is told before anything else; nobody waits for its reply."""
        self._slots = trio.Semaphore(CALLS_MAX)
        self._channel: Channel[ToParent] | None = None
        self._life = 0
        self._alive = False
        self._deaths = 0
        self._deaths_total = 0
        self.outage = ""
        """Why the child cannot reach the store at present; empty while it can."""
        self.on_outage: Callable[[str], None] = lambda reason: None
        self._heard = False
        self._wanted = trio.Event()
        self._scope = trio.CancelScope()
        self._running = False
        self._stopping = False
        self._finished = trio.Event()

    @property
    def deaths(self) -> int:
        """How many children died unasked."""
        return self._deaths_total

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return len(self._calls)

    async def ask(self, call: Call) -> Reply:
        """Send the request, over as many lives as it takes, and wait for its reply.

        Raises the store's error, or EngineError. Cancellable; while the child holds a file of the
        caller's, the cancellation takes effect when the child has let go of it.
        """
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        try:
            while (channel := self._channel) is not None and channel.is_full:
                await channel.room()
            if self._stopping:
                raise EngineError("the engine has been stopped")
            self._calls[call.request.id] = call
            if channel is not None:
                self._send(call, channel)
            self._wanted.set()
            call.task = trio.lowlevel.current_task()
            reply: Reply = await trio.lowlevel.wait_task_rescheduled(
                functools.partial(self._abort, call)
            )
        finally:
            self._calls.pop(call.request.id, None)
            self._slots.release()
        if isinstance(reply, Failed):
            raise error_of(reply.error)
        return reply

    def _send(self, call: Call, channel: Channel[ToParent]) -> None:
        try:
            channel.post(call.request, alone=len(self._calls) == 1)
        except UnicodeEncodeError as error:
            raise not_utf8(error, getattr(call.request, "key", "")) from None
        if call.life:
            call.resends += 1
        call.life = self._life

    def _abort(self, call: Call, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        if call.life == self._life and self._alive:
            if self._channel is not None:
                self._channel.post(messages.Cancel(call.request.id))
            if call.holds_file:
                call.raise_cancel = raise_cancel
                return trio.lowlevel.Abort.FAILED
        call.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _deliver(self, call: Call, result: outcome.Outcome[Reply]) -> None:
        self._calls.pop(call.request.id, None)
        task, call.task = call.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)

    def _deliver_cancelled(self, call: Call) -> None:
        assert call.raise_cancel is not None
        self._deliver(call, outcome.capture(call.raise_cancel))

    def _handle(self, message: ToParent) -> None:
        self._heard = True
        if isinstance(message, Reply):
            self._deaths = 0
            call = self._calls.get(message.id)
            if call is None:
                return
            if isinstance(message, messages.Cancelled) and call.raise_cancel is not None:
                self._deliver_cancelled(call)
            else:
                self._deliver(call, outcome.Value(message))
        elif isinstance(message, messages.Progress):
            call = self._calls.get(message.id)
            if call is not None:
                self._report(call, message.done)
        elif isinstance(message, messages.Reachability):
            self._note_outage(message.reason)
        elif isinstance(message, messages.Log):
            logging.getLogger(message.logger).log(
                message.level, "%s", message.text, extra={"about": message.about}
            )

    def _note_outage(self, reason: str) -> None:
        if reason != self.outage:
            self.outage = reason
            self.on_outage(reason)

    def _report(self, call: Call, done: int) -> None:
        """Tell the caller, unless an earlier child was further: progress never falls."""
        if call.on_progress is None or done <= call.progressed:
            return
        call.progressed = done
        try:
            call.on_progress(done)
        except Exception as error:  # noqa: BLE001 - the caller's mistake is the caller's to see
            if self._channel is not None:
                self._channel.post(messages.Cancel(call.request.id))
            self._deliver(call, outcome.Error(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a child alive until ``stop`` or cancellation. Never raises for a child's faults."""
        self._running = True
        try:
            with self._scope:
                task_status.started()
                while not (self._stopping and not self._calls):
                    began = trio.current_time()
                    reason = await attempt(self._run_child, otherwise="of an internal error here")
                    if self._stopping and not self._calls:
                        break
                    if trio.current_time() - began > LONG_LIFE_S:
                        self._deaths = 0
                    await self._after_exit(reason)
        finally:
            self._stopping = True
            self._fail_all("the engine has been stopped")
            self._finished.set()

    async def _run_child(self) -> str:
        """One child's life; how it ended."""
        self._life += 1
        try:
            child = self._spawn()
        except OSError as error:
            return f"it cannot be started: {error}"
        self._alive = True
        channel = Channel(child.socket, messages.decoder_for_parent())
        channel.post(messages.Start(self.config, logging.getLogger("s3mount").getEffectiveLevel()))
        if self.greeting is not None:
            channel.post(self.greeting)
        reason = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.read_stderr)
                nursery.start_soon(channel.send_forever)
                nursery.start_soon(self._watch, child, channel)
                nursery.start_soon(self._send_waiting, channel)
                self._channel = channel
                try:
                    await channel.receive_forever(self._handle)
                except BrokenStreamError as error:
                    log.error("the engine sent what is no message (%s); it is ended", error)
                nursery.cancel_scope.cancel()
        finally:
            self._channel = None
            self._note_outage("")
            channel.close()
            child.kill()
            with trio.CancelScope(shield=True):
                reason = await child.wait()
            child.close()
            self._alive = False
            for call in list(self._calls.values()):
                if call.raise_cancel is not None:
                    self._deliver_cancelled(call)
        return reason

    async def _send_waiting(self, channel: Channel[ToParent]) -> None:
        """Send what was asked between two lives or lost with the last one."""
        for call in list(self._calls.values()):
            await channel.room()
            if call.life != self._life and self._calls.get(call.request.id) is call:
                try:
                    self._send(call, channel)
                except Exception as error:  # noqa: BLE001 - belongs to that caller
                    self._deliver(call, outcome.Error(error))
        if self._stopping:
            channel.post(messages.Stop())

    async def _watch(self, child: Child, channel: Channel[ToParent]) -> None:
        """Kill a child that hangs: it answers no ping, or does not let go of a file."""
        silent_ticks = 0
        while True:
            self._heard = False
            if self._calls:
                channel.post(messages.Ping())
            await trio.sleep(TICK_S)
            silent_ticks = 0 if self._heard or not self._calls else silent_ticks + 1
            clinging = False
            for call in self._calls.values():
                if call.raise_cancel is not None:
                    call.cancel_ticks += 1
                    clinging = clinging or call.cancel_ticks > CANCEL_TICKS_MAX
            if silent_ticks >= SILENT_TICKS_MAX or clinging:
                log.warning("the engine process hangs; it is killed and started again")
                child.kill()
                return

    async def _after_exit(self, reason: str) -> None:
        """After a death: fail what may have caused it, and wait as long as is due."""
        self._deaths += 1
        self._deaths_total += 1
        log.warning(
            "the engine process ended (%s) and is started again; calls under way: %d",
            reason,
            len(self._calls),
        )
        for call in list(self._calls.values()):
            if call.life == self._life:
                call.deaths += 1
                if call.deaths >= CALL_DEATHS_MAX:
                    died = f"the engine process died {call.deaths} times over one request: {reason}"
                    self._deliver(call, outcome.Error(EngineError(died)))
        if self._deaths >= DEATHS_MAX:
            self._fail_all(f"the engine process keeps dying: {reason}")
            if self._stopping:
                return
            self._wanted = trio.Event()
            await self._wanted.wait()
        if self._deaths > 1:
            await trio.sleep(min(BACKOFF_FIRST_S * 2.0 ** (self._deaths - 2), BACKOFF_MAX_S))

    def _fail_all(self, why: str) -> None:
        for call in list(self._calls.values()):
            self._deliver(call, outcome.Error(EngineError(why)))

    async def stop(self, timeout_s: float) -> None:
        """Take no more calls, let those under way finish, end the child; kill it after ``timeout_s``.

        Repeatable. Returns when the child is gone, cancelled or not.
        """
        self._stopping = True
        if not self._running:
            await trio.lowlevel.checkpoint()
            return
        try:
            if self._channel is not None:
                self._channel.post(messages.Stop())
            elif not self._calls:
                self._scope.cancel()
            with trio.move_on_after(timeout_s):
                await self._finished.wait()
        finally:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._finished.wait()
