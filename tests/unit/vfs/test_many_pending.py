"""A folder with many pending files is listed in slices: others are answered meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from s3mount import slices
from s3mount.vfs.listing.merging import Merger
from tests.sim.world import World, simulated

FILES = 3 * slices.STEP


class NoWrites:
    """S3 can be read; a write waits for ever."""

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "put":
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()


class Turns(trio.abc.Instrument):
    """How many nodes were added in one turn at most."""

    def __init__(self) -> None:
        self.added = self.most = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.added = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.added)


@simulated
async def test_after_a_start_the_names_of_pending_files_come_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, faults=NoWrites())
    async with world.mounted() as mount:
        await mount.mkdir("d")
        for number in range(FILES):
            await mount.write(f"d/f{number:04}", b"x")
    turns, total = Turns(), 0
    add = Merger._add_pending

    def counted(*given: object) -> None:
        nonlocal total
        turns.added += 1
        total += 1
        add(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Merger, "_add_pending", counted)
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    async with world.mounted() as mount:
        trio.lowlevel.add_instrument(turns)
        try:
            shown = await mount.tree("d")
        finally:
            trio.lowlevel.remove_instrument(turns)
        assert len(shown) == FILES
    assert total >= FILES
    assert turns.most <= slices.STEP
