"""A manifest of what a bucket holds, or held."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from s3mount.errors import UsageError
from s3mount.manifest.model import Entry
from s3mount.manifest.times import SECOND_NS, format_time
from s3mount.manifest.versions.dating import Gaps
from s3mount.manifest.versions.key_pages import VersionPages
from s3mount.manifest.versions.version_scan import LISTS_AT_ONCE, Scan
from s3mount.manifest.versions.versions import CurrentAt, entry_of
from s3mount.refs import ObjectVersion
from s3mount.s3.store import Store

MILLISECOND_NS = 1_000_000
CLOCKS_APART_NS = 60 * SECOND_NS
"""A time in the future by less than this is taken for a clock that is ahead of the store's."""


class Moment(NamedTuple):
    """``at_ns`` is the time that is listed; what is dated up to ``until_ns`` counts."""

    at_ns: int
    until_ns: int


async def moment_to_list(store: Store, prefix: str, at_ns: int | None, now_ns: int) -> Moment:
    """The time whose state is to be listed: ``at_ns``, or now, by the later of both clocks.

    Now, what was written within the same second counts: dates may tell no more. Raises UsageError for a time
    that has not come, which could give other bytes later, and what ``Store.check_bucket`` raises.
    """
    about = await store.check_bucket(prefix)
    store_now_ns = about.date_ns + SECOND_NS - 1 if about.date_ns else 0
    latest_ns = max(store_now_ns, now_ns)
    if at_ns is None:
        return Moment(max(about.date_ns, now_ns - now_ns % MILLISECOND_NS), latest_ns)
    if at_ns > latest_ns + CLOCKS_APART_NS:
        raise UsageError(f"{format_time(at_ns)} has not come yet")
    return Moment(at_ns, at_ns)


def nothing_below(bucket: str, prefix: str) -> UsageError:
    """The error for a prefix below which no version lies."""
    return UsageError(f"no key lies below s3://{bucket}/{prefix}: mind the spelling")


async def list_entries(
    store: Store,
    bucket: str,
    prefix: str,
    at_ns: int,
    take: Callable[[list[Entry]], None],
    *,
    on_scan: Callable[[Scan[ObjectVersion]], None] | None = None,
    lists_at_once: int = LISTS_AT_ONCE,
    gaps: Gaps | None = None,
) -> None:
    """Give ``take`` what was current at ``at_ns`` below ``prefix``, in the order of manifests.

    ``on_scan`` gets the listing, for its counters, before it begins; ``gaps`` is told of all versions. Raises
    as ``Scan.run``.
    """
    keep = partial(CurrentAt, at_ns, gaps)
    scan = Scan(VersionPages(store, prefix), keep=keep, lists_at_once=lists_at_once)
    if on_scan is not None:
        on_scan(scan)

    def convert(versions: list[ObjectVersion]) -> None:
        take([entry_of(bucket, version) for version in versions])

    await scan.run(convert)
