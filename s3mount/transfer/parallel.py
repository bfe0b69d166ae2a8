"""Many things at once, a bounded number at a time, and one plain error at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_parallel(
    slots: trio.CapacityLimiter, items: Iterable[T], do: Callable[[T], Awaitable[None]]
) -> None:
    """Await ``do(item)`` for each item, in their order, as many at once as ``slots`` has tokens free.

    ``slots`` may be shared with others who work at the same time. The first exception cancels the
    rest and is raised as it is, in no group.
    """
    failure: Exception | None = None
    source = iter(items)

    async def work() -> None:
        nonlocal failure
        try:
            while True:
                async with slots:
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                    await do(item)
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            if failure is None:
                failure = error
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(_workers(slots, items)):
            nursery.start_soon(work)
    if failure is not None:
        raise failure


def _workers(slots: trio.CapacityLimiter, items: Iterable[object]) -> int:
    """No more tasks than there can be tokens, nor than items where they are counted."""
    most = int(min(slots.total_tokens, 10_000))
    try:
        return min(most, len(items))  # type: ignore[arg-type]
    except TypeError:
        return most
