"""Many tasks at once, and one plain error for what goes wrong in them: trio raises errors of a nursery as groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from s3mount.errors import S3MountError, leaf_of

T = TypeVar("T")


@contextmanager
def first_error() -> Iterator[None]:
    """Around a nursery: of the S3MountErrors of its tasks the first one is raised, by itself.

    Also when it is being cancelled just then: with ``except*`` the error would stay in a group together
    with ``Cancelled``, past everybody who expects an S3MountError. What else failed is raised as the group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        found, rest = group.split(S3MountError)
        if found is None or (rest is not None and rest.split(trio.Cancelled)[1] is not None):
            raise
        raise leaf_of(found) from None


def run(main: Callable[[], Awaitable[T]]) -> T:
    """``trio.run`` for a command. Raises what ``main`` raises; Ctrl-C comes out of nurseries as it is."""
    try:
        return trio.run(main, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


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
