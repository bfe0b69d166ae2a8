"""Faults by script: which request fails, how, how often, and whether it took effect before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from s3mount.errors import StoreError


@dataclass
class Rule:
    """``times`` requests of ``operation`` (for ``key``, if given) fail with ``error``."""

    operation: str
    error: Callable[[], StoreError]
    key: str | None = None
    times: float = float("inf")
    is_done: bool = False
    """The request took effect; only its answer is lost."""

    def applies(self, operation: str, arguments: Mapping[str, object]) -> bool:
        if self.times <= 0 or operation != self.operation:
            return False
        return self.key is None or arguments.get("key") == self.key


@dataclass
class Script:
    """Latency, rules, and gates that hold requests until they are opened."""

    latency_s: float = 0.0
    rules: list[Rule] = field(default_factory=list)
    gates: dict[tuple[str, str], trio.Event] = field(default_factory=dict)
    waiting: trio.Event = field(default_factory=trio.Event)

    def fail(
        self,
        operation: str,
        error: Callable[[], StoreError],
        *,
        key: str | None = None,
        times: float = float("inf"),
        is_done: bool = False,
    ) -> Rule:
        rule = Rule(operation, error, key, times, is_done)
        self.rules.append(rule)
        return rule

    def hold(self, operation: str, key: str) -> trio.Event:
        """Requests of this kind wait, after they took effect, until the event that is returned is set."""
        self.waiting = trio.Event()
        gate = self.gates[operation, key] = trio.Event()
        return gate

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.sleep(self.latency_s / 2)
        self._fail(operation, arguments, is_done=False)

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.sleep(self.latency_s / 2)
        key = str(arguments.get("key") or arguments.get("prefix") or "")
        gate = self.gates.get((operation, key))
        if gate is not None:
            self.waiting.set()
            await gate.wait()
        self._fail(operation, arguments, is_done=True)

    def _fail(self, operation: str, arguments: Mapping[str, object], *, is_done: bool) -> None:
        for rule in self.rules:
            if rule.is_done is is_done and rule.applies(operation, arguments):
                rule.times -= 1
                raise rule.error()
