"""Asks again for what is late, beside the request that waits: the first whole answer counts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from s3mount.errors import S3MountError
from s3mount.flow.hedging import Stragglers
from s3mount.s3.http.requests import Answer, Call
from s3mount.s3.http.statistics import Statistics

_log = logging.getLogger(__name__)

HEDGED_KINDS = frozenset(("get", "fetch", "head", "list"))
"""What changes nothing, and is asked often enough to know what is late."""
HEDGED_BYTES_MAX = 8 << 20
"""A second answer waits in memory until it is whole."""
LOOK_S = 0.05
IDLE_S = 5.0


class _Watched(NamedTuple):
    late_s: float
    due_s: float
    scope: trio.CancelScope


class Hedger:
    """Watches requests of one store. ``ask`` sends a second one where there is room for it, or returns ``None``."""

    def __init__(
        self, statistics: Statistics, ask: Callable[[Call], Awaitable[Answer | None]]
    ) -> None:
        self.stragglers = Stragglers()
        self._statistics = statistics
        self._ask = ask
        self._watched: dict[Call, _Watched] = {}
        self._looking: trio.CancelScope | None = None

    def watch(self, call: Call, scope: trio.CancelScope, now_s: float) -> None:
        """``call`` begins; ``scope`` is cancelled, and ``call.hedge`` set, when a second one has its answer."""
        call.hedge = None
        if call.kind not in HEDGED_KINDS or not call.is_hedgeable:
            return
        late_s = self.stragglers.late_after_s(call.kind, call.size_bytes)
        if late_s is None or call.size_bytes > HEDGED_BYTES_MAX:
            return
        call.hedged_try = scope
        self._watched[call] = _Watched(late_s, now_s + late_s, scope)
        if self._looking is None:
            self._looking = trio.CancelScope()
            # Of its own, since whoever asks may end long before others that are watched.
            trio.lowlevel.spawn_system_task(self._look, self._looking)

    def leave(self, call: Call) -> None:
        """It ended, well or not."""
        self._watched.pop(call, None)
        call.hedged_try = None

    def close(self) -> None:
        """Ask no more. Repeatable."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self, scope: trio.CancelScope) -> None:
        """Ask again for what is late, until nothing was watched for a while."""
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    busy_s = trio.current_time()
                    while trio.current_time() - busy_s < IDLE_S:
                        await trio.sleep(LOOK_S)
                        now_s = trio.current_time()
                        busy_s = now_s if self._watched else busy_s
                        for call, watched in list(self._watched.items()):
                            if watched.due_s <= now_s:
                                del self._watched[call]
                                nursery.start_soon(self._second, call, watched)
        finally:
            self._looking = None

    async def _second(self, call: Call, watched: _Watched) -> None:
        if not self.stragglers.may_ask_again():
            return
        again = call.again()
        try:
            answer = await self._ask(again)
        except S3MountError as error:
            _log.debug("the second %s failed: %s", call.kind, error)
            return
        except Exception:  # noqa: BLE001 - a fault here must not end the store's other requests
            _log.exception("a second %s failed", call.kind)
            return
        if answer is None or call.hedged_try is not watched.scope:
            return
        self._statistics.hedges_won += 1
        self.stragglers.took(call.kind, call.size_bytes, watched.late_s)
        call.hedge, call.moved = answer, again.moved
        watched.scope.cancel()
