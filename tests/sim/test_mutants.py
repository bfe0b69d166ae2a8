"""Known bugs put back in: the simulation must find each, or it proves nothing of them.

Each is found within a few of the seeds that are played here; how many it took is in the failure's text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio

from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Change
from s3mount.spool.journal.durability import Durability
from s3mount.spool.journal.journal import Journal
from s3mount.spool.spool import Spool
from tests.sim.program import Wrong
from tests.sim.run import SIMULATED_STEPS, play

SEEDS = 100


def acknowledge_before_commit() -> Any:
    """The journal's last transaction is written only with the next one."""
    record = Journal.record
    late: dict[int, Callable[[], None]] = {}

    def delayed(
        self: Journal, changes: Iterable[Change], removed: Iterable[str] = (), **more: Any
    ) -> None:
        before = late.pop(id(self), None)
        if before is not None:
            before()
        new, gone = list(changes), list(removed)
        late[id(self)] = lambda: record(self, new, gone, **more)

    return mock.patch.object(Journal, "record", delayed)


def row_before_blob() -> Any:
    """A row is committed before the bytes that it speaks of are in its blob."""
    save = Spool.save

    def hasty(self: Spool, change: Change) -> None:
        blob = self.blob_of(change)
        pieces = [] if blob is None else [(a, os.pread(blob.fd, b - a, a)) for a, b in blob.extents]
        for at, data in pieces:
            assert blob is not None
            os.pwrite(blob.fd, bytes(len(data)), at)
        try:
            save(self, change)
        finally:
            for at, data in pieces:
                assert blob is not None
                os.pwrite(blob.fd, data, at)

    return mock.patch.object(Spool, "save", hasty)


def parts_never_taken_back() -> Any:
    """A part that S3 has counts as sent though its bytes were changed since."""
    write = Blob.write

    def careless(self: Blob, offset: int, data: bytes | memoryview) -> int:
        upload, self.upload = self.upload, None
        try:
            return write(self, offset, data)
        finally:
            self.upload = upload

    return mock.patch.object(Blob, "write", careless)


async def _at_once(*_: Any) -> None:
    await trio.lowlevel.checkpoint()


def fsync_without_a_flush() -> Any:
    """fsync() returns when it is journalled."""
    return mock.patch.object(Spool, "force", _at_once)


def s3_ahead_of_the_journal() -> Any:
    """What is sent is journalled, but the journal is not on the disk."""
    return mock.patch.object(Durability, "journal", _at_once)


def blobs_removed_at_once() -> Any:
    """A blob goes before the journal that no longer needs it is on the disk."""
    return mock.patch.object(
        Durability, "remove_later", lambda self, path: path.unlink(missing_ok=True)
    )


ANY_STEP = SIMULATED_STEPS


@pytest.mark.parametrize(
    ("mutant", "aim"),
    [
        (acknowledge_before_commit, ANY_STEP),
        (row_before_blob, ("journal: committed",)),
        (parts_never_taken_back, ANY_STEP),
    ],
)
def test_the_simulation_finds_it(
    mutant: Callable[[], Any], aim: tuple[str, ...], tmp_path: Path
) -> None:
    """Kills at a step are aimed at those where the bug shows, so that few seeds suffice."""
    for seed in range(SEEDS):
        with mutant(), mock.patch("tests.sim.run.SIMULATED_STEPS", aim):
            try:
                play(seed, tmp_path / f"{seed}")
            except (Wrong, BaseExceptionGroup) as error:
                if isinstance(_first_of(error), Wrong):
                    return
                raise
    pytest.fail(f"{mutant.__name__} was not found in {SEEDS} seeds")


@pytest.mark.parametrize(
    ("mutant", "aim"),
    [
        (fsync_without_a_flush, ANY_STEP),
        (s3_ahead_of_the_journal, ANY_STEP),
        (blobs_removed_at_once, ("change: superseded", "spool: recorded")),
    ],
)
def test_power_cuts_find_it(
    mutant: Callable[[], Any], aim: tuple[str, ...], tmp_path: Path
) -> None:
    # What is lost with the journal's log shows these bugs, so it is lost each time.
    with (
        mock.patch("tests.sim.run.POWER_CUTS_SHARE", 1.0),
        mock.patch("tests.sim.disk.WRITTEN_BACK_SHARE", 0.0),
    ):
        test_the_simulation_finds_it(mutant, aim, tmp_path)


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
