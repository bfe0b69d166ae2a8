from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3mount.flow.window import Window


def test_success_widens_up_to_the_maximum() -> None:
    window = Window(64, start=4)
    for _ in range(100):
        window.succeeded()
    assert window.size == 64


def test_throttling_halves_once_for_all_that_were_under_way() -> None:
    window = Window(128, start=100)
    for _ in range(50):
        window.throttled(started_at_s=1.0, now_s=2.0)
    assert window.size == 50
    window.throttled(started_at_s=3.0, now_s=4.0)
    assert window.size == 25


def test_after_shrinking_it_grows_by_one_per_round() -> None:
    window = Window(128, start=40)
    window.throttled(1.0, 2.0)
    assert window.size == 20
    for _ in range(20):
        window.succeeded()
    assert window.size in (20, 21)
    for _ in range(25):
        window.succeeded()
    assert window.size in (21, 22)


def test_single_hung_connections_are_no_load() -> None:
    window = Window(64, start=64)
    for number in range(500):
        if number % 50 == 0:  # two in a hundred
            window.overdue(float(number), number + 0.5)
        else:
            window.succeeded()
    assert window.size == 64


def test_many_overdue_requests_are() -> None:
    window = Window(64, start=64)
    for number in range(10):
        window.overdue(float(number), number + 0.5)
    assert window.size < 20


@given(st.lists(st.sampled_from("sto"), max_size=200), st.integers(-3, 300), st.integers(1, 300))
def test_it_never_leaves_its_bounds(events: str, maximum: int, start: int) -> None:
    window = Window(maximum, start=start)
    for now, event in enumerate(events):
        if event == "s":
            window.succeeded()
        elif event == "t":
            window.throttled(now, now + 0.5)
        else:
            window.overdue(now, now + 0.5)
        assert 1 <= window.size <= max(1, maximum)
