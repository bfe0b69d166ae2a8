"""What a soak is made of: it goes on through what it may be told, and notices what it must not miss."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.disks import Ballast
from tests.soak import strangers
from tests.soak.crew import TOLD, Crew, Member
from tests.soak.figures import Figures, growth
from tests.soak.strangers import Lines, content_of
from tests.soak.trouble import Filler
from tests.soak.writers import Enduring, EnduringHot, EnduringLarge, EnduringOdd, EnduringSmall

KINDS: tuple[type[Enduring], ...] = (EnduringSmall, EnduringHot, EnduringOdd, EnduringLarge)


@pytest.fixture
def crew() -> Crew:
    crew = Crew()
    crew.ending.set()  # nobody waits between turns
    return crew


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """One write, rename or removal in six is refused, before or after a part of it was done."""
    rng = random.Random(3)

    def refused(call: Callable[..., object], *, part: bool) -> Callable[..., object]:
        def maybe(*arguments: object, **named: object) -> object:
            if rng.random() < 1 / 6:
                if part and rng.random() < 0.5:
                    call(*arguments, **named)
                raise OSError(rng.choice(TOLD), "refused")
            return call(*arguments, **named)

        return maybe

    monkeypatch.setattr(os, "pwrite", refused(os.pwrite, part=True))
    monkeypatch.setattr(os, "fsync", refused(os.fsync, part=False))
    for name in ("rename", "unlink", "mkdir", "rmdir", "symlink_to"):
        monkeypatch.setattr(Path, name, refused(getattr(Path, name), part=True))
    return rng


def play(program: Enduring, turns: int) -> None:
    for _ in range(turns):
        program._guarded(program._turn)


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_knows_what_is_there_whatever_it_was_told(
    kind: type[Enduring], tmp_path: Path, crew: Crew, refusing: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    program = kind(tmp_path / "top", 5, crew)
    play(program, 20 if kind is EnduringLarge else 150)
    assert crew.told
    monkeypatch.undo()
    play(program, 1)
    program._guarded(program._finish)
    assert crew.wrong == []
    assert program.told.settle(program.found()) == []


@pytest.mark.parametrize("loss", ["cut", "altered", "gone", "new"])
def test_a_writer_notices_what_nobody_told(loss: str, tmp_path: Path, crew: Crew) -> None:
    program = EnduringSmall(tmp_path / "top", 6, crew)
    play(program, 60)
    assert crew.wrong == []
    program.save("victim", b"a" * 5000)
    place = program.top / "victim"
    if loss == "cut":
        os.truncate(place, 4999)
    elif loss == "altered":
        place.write_bytes(b"a" * 4999 + b"b")
    elif loss == "gone":
        place.unlink()
    else:
        (program.top / "strange").write_bytes(b"")
    program.told.now = {"": None, "victim": b"a" * 5000} if loss != "new" else program.told.now
    for _ in range(200):
        program._guarded(program._look)
    assert crew.wrong or "ENOENT" in crew.told
    assert crew.wrong


def test_an_error_that_may_not_be_told_is_wrong(crew: Crew) -> None:
    class Odd(Member):
        def turn(self) -> None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    member = Odd("somebody", crew, 1, pause_s=0)
    member._guarded(member.turn)
    assert crew.told == {"ENOTCONN": 1}
    assert "somebody was told" in crew.wrong[0]


def test_what_does_not_return_is_named(crew: Crew) -> None:
    with crew.doing("somebody", "a rename"):
        assert crew.overdue(-1.0)[0].startswith("somebody: a rename has not returned")
        assert crew.overdue(60.0) == []
    assert crew.overdue(-1.0) == []


def figures(mount_mib: float, descriptors: int = 50) -> Figures:
    return Figures(mount_mib, 80, descriptors, 7, 2)


def test_growth_is_told_and_ups_and_downs_are_not() -> None:
    steady = [figures(100 + 15 * (number % 3)) for number in range(30)]
    assert growth(steady) == []
    leaking = [figures(100 + 5 * number, 50 + 8 * number) for number in range(30)]
    told = growth(leaking)
    assert [each.split()[0] for each in told] == ["mount_mib", "descriptors"]
    assert growth(leaking[:5]) == [], "a few samples tell nothing"


def test_a_lost_line_is_named_and_a_strange_one_told() -> None:
    lines = Lines()
    for line in ("one", "two", "three"):
        lines.begin(line)
    lines.end("one")
    lines.end("two")
    assert lines.find(b"one\nthree\nfour\n") == ["four"]
    assert lines.lost() == ["two"]


def test_a_foreign_file_tells_which_put_it_is() -> None:
    for name in (strangers.SMALL_NAMES[0], strangers.LARGE_NAMES[0]):
        first, second = content_of(name, 1), content_of(name, 2)
        assert first != second
        assert first == content_of(name, 1)
        assert int(second[: strangers.HEAD_BYTES]) == 2


def test_the_room_of_a_disk_is_given_back_at_the_end(tmp_path: Path, crew: Crew) -> None:
    """Also when the end comes while it is taken."""
    (tmp_path / "ballast").write_bytes(b"left")
    filler = Filler("state", crew, 1, Ballast(tmp_path), (1, 2))
    filler._guarded(filler.turn)
    assert (tmp_path / "ballast").exists(), "nothing is taken after the end"
    Ballast(tmp_path).give_back()
    assert list(tmp_path.iterdir()) == []
