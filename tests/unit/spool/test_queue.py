"""Which change goes next."""

from __future__ import annotations

from s3mount.refs import ContentRef
from s3mount.spool.journal.changes import Change, Copy, Delete, Put
from s3mount.spool.journal.states import State
from s3mount.spool.upload.queue import LOOKS_MAX, Lane, UploadQueue


class Board:
    """Changes and what blocks what, without a spool."""

    def __init__(self) -> None:
        self.changes: dict[str, Change] = {}
        self.blockers: dict[str, str] = {}
        self.queue = UploadQueue(
            self.changes.get,
            lambda change: self.blockers.get(change.key),
            large_bytes_min=100,
            gathers_deletions=lambda: False,
        )

    def add(self, key: str, seq: int, *, at: float = 0.0, size: int = 0) -> Change:
        return self.line_up(Put(key=key, seq=seq, size=size), at=at)

    def line_up(self, change: Change, *, at: float = 0.0) -> Change:
        self.changes[change.key] = change
        self.queue.push(change, at)
        return change

    def take(self, now: float = 0.0, lane: Lane = Lane.SMALL) -> str | None:
        change = self.queue.take(lane, now)
        return None if change is None else change.key


def test_the_oldest_that_is_due_goes_first() -> None:
    board = Board()
    board.add("later", 1, at=5.0)
    board.add("second", 3)
    board.add("first", 2)
    assert [board.take() for _ in range(3)] == ["first", "second", None]
    assert board.queue.next_time(Lane.SMALL) == 5.0
    assert board.take(5.0) == "later"
    assert board.queue.next_time(Lane.SMALL) is None


def test_large_bodies_have_a_lane_of_their_own() -> None:
    board = Board()
    board.add("large", 1, size=100)
    board.add("small", 2, size=99)
    assert board.take() == "small"
    assert board.take() is None
    assert board.take(lane=Lane.LARGE) == "large"


def test_what_was_replaced_or_is_open_again_is_passed_over() -> None:
    board = Board()
    board.add("replaced", 1)
    board.add("replaced", 2)
    board.add("open", 3).state = State.OPEN
    board.add("gone", 4)
    del board.changes["gone"]
    assert board.take() == "replaced"
    assert board.take() is None


def test_one_key_is_sent_once_at_a_time() -> None:
    board = Board()
    board.add("a", 1)
    assert board.take() == "a"
    again = board.add("a", 2)
    assert board.take() is None
    assert board.queue.is_sending("a")
    assert board.queue.finished("a") == ["a"]
    board.queue.push(again, 0.0)
    assert board.take() == "a"


def test_who_waits_for_another_is_told_when_that_ends_or_is_replaced() -> None:
    board = Board()
    waiting = board.add("b", 1)
    board.add("a", 2)
    board.blockers["b"] = "a"
    assert board.take() == "a"
    assert board.take() is None
    assert board.queue.freed("a") == [], "it is still on its way"
    assert board.queue.finished("a") == ["b"]
    board.queue.push(waiting, 0.0)
    assert board.take() is None
    assert board.queue.freed("a") == ["b"]
    del board.blockers["b"]
    board.queue.push(waiting, 0.0)
    assert board.take() == "b"
    assert board.queue.sending_count == 2 - 1


def test_a_later_try_does_not_come_early() -> None:
    board = Board()
    change = board.add("a", 1)
    assert board.take() == "a"
    assert board.queue.finished("a") == []
    board.queue.push(change, 30.0)
    assert board.take(29.9) is None
    assert board.take(30.0) == "a"


def test_what_a_request_reads_stays_until_it_ends_though_its_change_was_replaced() -> None:
    board = Board()
    board.line_up(Copy(key="copy", seq=1, source=ContentRef("source", "etag", 5)))
    assert board.take() == "copy"
    board.line_up(Delete(key="copy", seq=2))
    board.add("source", 3)
    assert board.take() is None
    assert sorted(board.queue.finished("copy")) == ["copy", "source"]
    board.queue.push(board.changes["source"], 0.0)
    assert board.take() == "source"


def test_many_that_wait_for_one_are_looked_at_in_several_turns() -> None:
    """Before, one call looked at all of them: thousands of deletions wait while a folder moves."""
    board = Board()
    waiting = LOOKS_MAX + 1
    for number in range(waiting):
        board.add(f"waiting {number}", number)
        board.blockers[f"waiting {number}"] = "first"
    board.add("free", waiting)
    assert board.take() is None
    assert board.queue.next_time(Lane.SMALL) == 0.0, "it is to be called again"
    assert board.take() == "free"
    assert len(board.queue.finished("first")) == waiting
