"""What happens to the way to S3 and to the disks while a soak goes on, by a seed."""

from __future__ import annotations

import time

from tests.faults.disks import Ballast
from tests.servers.counting import Answer
from tests.servers.faulty import BadDays, Fate, FaultyRelay
from tests.soak.crew import Crew, Member

FATES = (
    Fate.RESET_SENDING,
    Fate.RESET_RECEIVING,
    Fate.LOSE_ANSWER,
    Fate.CUT,
    Fate.STALL_SENDING,
    Fate.STALL_RECEIVING,
    Fate.SWALLOW_ANSWER,
    Fate.TRICKLE,
    Answer(503, "SlowDown"),
    Answer(500, "InternalError"),
)


class Weather(Member):
    """Fair for a while, then bad: requests spoilt, all connections cut, held or refused."""

    def __init__(self, crew: Crew, seed: int, relay: FaultyRelay) -> None:
        super().__init__("the weather", crew, seed, pause_s=0.0)
        self._relay = relay

    def turn(self) -> None:
        """A fair time and a bad one."""
        self.crew.fair_since = time.monotonic()
        self._lasts(10, 35)
        self.crew.fair_since = None
        bad = self.rng.choice((self.spoil, self.spoil, self.cut, self.hold, self.refuse))
        bad()
        self.crew.count(f"weather: {bad.__name__}")
        self.heal()

    def heal(self) -> None:
        """All is well; repeatable."""
        self._relay.decide = lambda request: None
        self._relay.release()
        self._relay.forget()

    def spoil(self) -> None:
        """A share of the requests goes wrong."""
        share = self.rng.choice((0.05, 0.2, 0.5))
        self._relay.decide = BadDays(FATES, share=share, seed=self.rng.randrange(1 << 30))
        self._lasts(5, 25)

    def cut(self) -> None:
        """All connections end, several times."""
        for _ in range(self.rng.randrange(1, 5)):
            self._relay.stop()
            self._relay.start()
            self._lasts(0.2, 3)

    def hold(self) -> None:
        """Requests come in, and nothing happens."""
        self._relay.hold()
        self._lasts(2, 20)

    def refuse(self) -> None:
        """No connection is taken."""
        self._relay.stop()
        try:
            self._lasts(2, 25)
        finally:
            self._relay.start()

    def _lasts(self, shortest_s: float, longest_s: float) -> None:
        self.crew.ending.wait(self.rng.uniform(shortest_s, longest_s))


class Filler(Member):
    """Somebody else's file that takes all the room of a disk for a while."""

    def __init__(
        self, what: str, crew: Crew, seed: int, ballast: Ballast, seconds: tuple[int, int]
    ) -> None:
        super().__init__(f"the disk of the {what}", crew, seed, pause_s=0.0)
        self._what = what
        self._ballast = ballast
        self._seconds = seconds

    def turn(self) -> None:
        """Room, no room, room."""
        self.crew.ending.wait(self.rng.uniform(20, 70))
        if self.crew.ending.is_set():
            return
        try:
            end = time.monotonic() + self.rng.uniform(*self._seconds)
            while time.monotonic() < end and not self.crew.ending.is_set():
                self._ballast.take_all()
                self.crew.ending.wait(1.0)
            self.crew.count(f"times that the {self._what}'s disk was full")
        finally:
            self._ballast.give_back()
