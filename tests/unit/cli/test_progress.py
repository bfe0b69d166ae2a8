"""When somebody who waits for the uploads is told what, and when it makes no sense to wait on."""

from __future__ import annotations

import pytest

from s3mount.cli import progress
from s3mount.cli.progress import EVERY_S, Uploads
from s3mount.daemon.protocol import Progress


class Time:
    """What ``time.monotonic`` says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    stand_in = Time()
    monkeypatch.setattr(progress, "time", stand_in)
    return stand_in


def test_tries_that_fail_again_and_again_are_no_progress(time: Time) -> None:
    uploads = Uploads(None, stall_s=60)
    for _ in range(7):
        uploads.seen(Progress(1, 10, moved=500))
        time.now += 5
        uploads.seen(Progress(1, 10, moved=0, trouble="'a': no answer"))
        time.now += 5
    assert uploads.expired == "nothing was sent for 60 s"
    assert uploads.left == "1 change (10 B) not in S3 yet; 'a': no answer"


def test_what_arrives_is_progress(time: Time) -> None:
    uploads = Uploads(None, stall_s=60)
    for sent in range(20):
        uploads.seen(Progress(1, 10, moved=sent))
        time.now += 50
        assert uploads.expired is None
    for left in range(20):
        uploads.seen(Progress(20 - left, 10, moved=0))
        time.now += 50
        assert uploads.expired is None


def test_a_limit_in_all_holds_whatever_arrives(time: Time) -> None:
    uploads = Uploads(30)
    assert uploads.left == "an unknown number of changes are not in S3 yet"
    time.now = 29.0
    uploads.seen(Progress(1, 10, moved=1))
    assert uploads.expired is None
    time.now = 30.0
    uploads.seen(Progress(1, 10, moved=2))
    assert uploads.expired == "not everything was sent within 30 s"


def test_without_a_terminal_a_line_now_and_then_tells_why(
    time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads = Uploads(None)
    for _ in range(3):
        uploads.seen(Progress(2, 2048, 0, "'a': the store is gone"))
        time.now += EVERY_S / 2
    uploads.seen(Progress(2, 2048, 0))
    time.now += EVERY_S
    uploads.seen(Progress(2, 2048, 0))
    assert capsys.readouterr().err.splitlines() == [
        "s3mount: sending: 2 changes (2.0 KiB) left; not taken by S3 yet: 'a': the store is gone",
        "s3mount: sending: 2 changes (2.0 KiB) left",
    ]
