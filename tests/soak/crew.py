"""Who takes part in a soak: threads that go on through errors they may be told, and stop at what must not be."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

TOLD = (errno.ENOSPC, errno.EIO, errno.ETIMEDOUT)
"""A full disk and an S3 that cannot be reached: a program may be told these, never nothing."""
UNREACHABLE = (errno.EIO, errno.ETIMEDOUT)
FAIR_S = 15.0
"""So long after bad weather S3 can be reached again, and nobody should be told otherwise."""
REPLACED = (*TOLD, errno.ENOENT, errno.ESTALE, errno.EEXIST)
"""What else may come where somebody else removes and replaces files meanwhile."""


class Crew:
    """What they have in common: the end, what was done and told, and the first thing that went wrong."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.ending = threading.Event()
        self.fair_since: float | None = None
        self._since: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def is_wrong(self, what: str) -> None:
        """Something happened that must not; the soak ends and says so, and takes the mount away from the others."""
        with self._lock:
            if not self.wrong or not self.ending.is_set():
                self.wrong.append(what)

    def count(self, what: str, number: int = 1) -> None:
        """``what`` was done."""
        with self._lock:
            self.done[what] += number

    def was_told(self, who: str, error: OSError, allowed: tuple[int, ...]) -> None:
        """``who`` met ``error``: counted where it is ``allowed``, else wrong."""
        if self.wrong:
            return  # the mount was taken away from under it
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        fair_since = self.fair_since
        if (
            fair_since is not None
            and time.monotonic() - fair_since > FAIR_S
            and error.errno in UNREACHABLE
        ):
            name += " in fair weather"
            print(
                f"{time.strftime('%H:%M:%S')} {who} was told {error!r} in fair weather", flush=True
            )
        with self._lock:
            self.told[name] += 1
        if error.errno not in allowed:
            self.is_wrong(f"{who} was told {error!r}")

    @contextlib.contextmanager
    def doing(self, who: str, what: str) -> Iterator[None]:
        """``who`` does ``what``: known to ``overdue`` until the block ends."""
        with self._lock:
            self._since[who] = (time.monotonic(), what)
        try:
            yield
        finally:
            with self._lock:
                self._since.pop(who, None)

    def overdue(self, limit_s: float) -> list[str]:
        """What has not returned for longer than ``limit_s``."""
        now = time.monotonic()
        with self._lock:
            since = dict(self._since)
        return [
            f"{who}: {what} has not returned for {now - began:.0f} s"
            for who, (began, what) in since.items()
            if now - began > limit_s
        ]


class Member:
    """One thread that takes turns until the end. ``allowed`` are the errors that it may be told."""

    allowed: tuple[int, ...] = TOLD

    def __init__(self, name: str, crew: Crew, seed: int, *, pause_s: float) -> None:
        self.name = name
        self.crew = crew
        self.rng = random.Random(f"{seed} {name}")
        self._pause_s = pause_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def turn(self) -> None:
        """One thing to do; each kind of member has its own. Raises OSError."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the present turn; wrong when it does not come."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.crew.is_wrong(f"{self.name} does not end")

    def _run(self) -> None:
        while not self.crew.ending.is_set():
            self._guarded(self.turn)
            self.crew.ending.wait(self.rng.random() * 2 * self._pause_s)

    def _guarded(self, turn: Callable[[], None]) -> None:
        try:
            with self.crew.doing(self.name, getattr(turn, "__name__", "a turn")):
                turn()
        except OSError as error:
            self.crew.was_told(self.name, error, self.allowed)
        except Exception as error:  # noqa: BLE001 - whatever it is, the soak has to end with it
            self.crew.is_wrong(f"{self.name}: {error!r}")
