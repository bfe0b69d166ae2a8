"""Limits how many requests are under way at once to what a window allows; the others wait in line."""

from __future__ import annotations

import trio

from s3mount.flow.window import Window


class Limiter:
    """First come, first served. Every ``enter`` that returned is followed by one ``leave``."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.inside = 0
        self._line = trio.lowlevel.ParkingLot()

    async def enter(self) -> None:
        """Wait for a place. May be cancelled; then there is nothing to leave."""
        if self.inside < self.window.size and not self._line:
            self.inside += 1
            return
        # The place is taken on our behalf by whoever wakes us.
        await self._line.park()

    def leave(self) -> None:
        """Give the place back and let in whom the window has room for."""
        self.inside -= 1
        self.admit()

    def admit(self) -> None:
        """Let in whom the window has room for; to be called when it has grown."""
        while self._line and self.inside < self.window.size:
            self.inside += 1
            self._line.unpark()
