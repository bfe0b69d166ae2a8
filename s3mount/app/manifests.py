"""Making, comparing, checking and restoring manifests, without a mount. Every function here blocks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import trio

from s3mount import tasks
from s3mount.bulk.batches.result_log import Header, ResultLog
from s3mount.bulk.batches.running import Spread, local_workers
from s3mount.bulk.batches.wire import Size, Verified
from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.errors import ManifestError, UsageError
from s3mount.manifest import verifying
from s3mount.manifest.buckets import Buckets, open_buckets
from s3mount.manifest.comparing import Difference, differences
from s3mount.manifest.external_sort import sorted_entries
from s3mount.manifest.formats.reading import (
    Format,
    digest_of,
    format_of,
    in_order,
    read_entries,
    scopes_of,
)
from s3mount.manifest.formats.writing import ManifestWriter, OutputFormat, WholeFile
from s3mount.manifest.location import brought_here, is_live_bucket, parse_s3, to_be_filled
from s3mount.manifest.model import Entry
from s3mount.manifest.restoring import Plan, Progress, Step, carry_out, plan_restore, why_missing
from s3mount.manifest.scope import Scope, Scopes
from s3mount.manifest.selecting import Own, own_of, select, shared_beginnings
from s3mount.manifest.summary import Summary, summarise
from s3mount.manifest.verifying import Problem, Verification
from s3mount.manifest.versions.building import list_entries, moment_to_list, nothing_below
from s3mount.manifest.versions.dating import WRONG_DATES, Gaps, are_dates_right
from s3mount.manifest.versions.version_scan import Scan
from s3mount.names import normal_prefix
from s3mount.refs import ObjectVersion
from s3mount.s3.store import Store

TICK_S = 0.2
RULE_ASKED_FOR_S = 5.0
"""So long a finished manifest waits to hear of lifecycle rules."""

Show = Callable[[str], None]
"""Shows how far something is; called every TICK_S."""
R = TypeVar("R")


class Access(NamedTuple):
    """How S3 is asked: all but the bucket of ``config``. ``bucket``: of manifests that name none."""

    config: StoreConfig
    bucket: str | None = None

    @asynccontextmanager
    async def open_store(self, bucket: str) -> AsyncIterator[Store]:
        """The store of one bucket, in a process of its own, as a mount has it."""
        async with EngineClient(msgspec.structs.replace(self.config, bucket=bucket)) as store:
            yield store


class Created(NamedTuple):
    """A manifest that was made: as of when, and what it holds. ``digest`` is its identity.

    ``rule``: the lifecycle rule that destroys old versions, in words, if there is one and S3 tells it.
    """

    at_ns: int
    keys: int
    size_bytes: int
    digest: str
    rule: str


class Shown(NamedTuple):
    """What a manifest is."""

    format: Format
    digest: str
    summary: Summary
    scopes: Scopes


async def _shown(work: Callable[[], Awaitable[R]], show: Show, text: Callable[[], str]) -> R:
    """Do ``work`` and tell ``show`` every TICK_S how far it is. Raises what ``work`` raises."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def tick() -> None:
            while True:
                await trio.sleep(TICK_S)
                show(text())

        nursery.start_soon(tick)
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


class _Rate:
    """Text on a number that grows, with how much of it comes a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_s = time.monotonic()

    def __call__(self, count: int) -> str:
        elapsed_s = time.monotonic() - self._began_s
        return f"{count:,} {self._what}, {count / max(elapsed_s, 0.001):,.0f}/s"


# ------------------------------------------------------------------------------ create


def create(
    access: Access,
    bucket: str,
    prefix: str,
    at_ns: int | None,
    output: str,
    output_format: OutputFormat,
    show: Show,
) -> Created:
    """Write what was current at ``at_ns`` (now, for ``None``) below ``prefix`` to ``output``.

    ``output`` is a local file, which appears whole, an ``s3://`` address or ``-``. Raises S3MountError.
    """

    async def main() -> Created:
        async with (
            to_be_filled(output, access.open_store) as path,
            access.open_store(bucket) as store,
        ):
            made = await list_to_file(store, bucket, prefix, at_ns, path, output_format, show)
            digest = await trio.to_thread.run_sync(digest_of, path)
            rule = ""
            with trio.move_on_after(RULE_ASKED_FOR_S):
                rule = await store.noncurrent_rule(prefix)
        return Created(made.at_ns, made.keys, made.size_bytes, digest, rule)

    return tasks.run(main)


class _Listed(NamedTuple):
    at_ns: int
    keys: int
    size_bytes: int
    has_versions: bool
    """Is there, or was there ever, anything below the prefix, as far as the store still tells?"""


async def list_to_file(
    store: Store,
    bucket: str,
    prefix: str,
    at_ns: int | None,
    path: Path,
    output_format: OutputFormat,
    show: Show,
    *,
    may_be_empty: bool = False,
) -> _Listed:
    """Write a manifest to ``path``.

    Raises UsageError where nothing lies or lay below the prefix, and ManifestError where the past cannot be told.
    """
    moment = await moment_to_list(store, prefix, at_ns, time.time_ns())
    scans: list[Scan[ObjectVersion]] = []
    gaps = Gaps()
    rate = _Rate("versions")
    with WholeFile(path) as file:
        writer = ManifestWriter(file, output_format, Scope(bucket, prefix, moment.at_ns, True))
        work = partial(
            list_entries,
            store,
            bucket,
            prefix,
            moment.until_ns,
            writer.write,
            on_scan=scans.append,
            gaps=gaps,
        )

        def text() -> str:
            listed, lists = (scans[0].listed, scans[0].ranges_running) if scans else (0, 0)
            return f"listing {bucket}: {rate(listed)}, {writer.count:,} current, {lists} at once"

        await _shown(work, show, text)
        if prefix and not scans[0].listed and not may_be_empty:
            raise nothing_below(bucket, prefix)
        if at_ns is not None and gaps.are_suspicious and not await are_dates_right(store, prefix):
            raise ManifestError(WRONG_DATES)
        writer.finish()
    return _Listed(moment.at_ns, writer.count, writer.size_bytes, bool(scans[0].listed))


# ------------------------------------------------------------------------- show, diff


def show(access: Access, source: str) -> Shown:
    """Add a manifest up. Raises S3MountError."""

    async def main() -> Shown:
        async with brought_here(source, access.open_store) as path:
            return await trio.to_thread.run_sync(_summarised, source, path, access.bucket)

    return tasks.run(main)


def _summarised(source: str, path: Path, bucket: str | None) -> Shown:
    summary = summarise(sorted_entries(read_entries(path, bucket=bucket), source))
    summary.is_in_order = in_order(path, bucket=bucket)
    scopes = scopes_of(path, bucket=bucket)
    return Shown(format_of(path, bucket=bucket), digest_of(path), summary, scopes)


def diff(
    access: Access,
    before: str,
    after: str,
    report: Callable[[Difference], None],
    show: Show,
    *,
    by_content: bool,
    at_ns: int | None = None,
) -> None:
    """Give ``report`` what differs, in the order of keys. Raises S3MountError.

    Either side may be a live bucket, ``s3://BUCKET`` or ``s3://BUCKET/PREFIX/``; the first of these as it was
    at ``at_ns``. A prefix below which neither side has anything, now or ever, is a UsageError.
    """
    after_ns = None if is_live_bucket(before) else at_ns

    async def main() -> None:
        async with (
            _side(access, before, at_ns, show) as old,
            _side(access, after, after_ns, show) as new,
        ):

            def compare() -> None:
                _must_be_somewhere(old, new, access.bucket)
                _must_be_somewhere(new, old, access.bucket)
                left = sorted_entries(read_entries(old.path, bucket=access.bucket), before)
                right = sorted_entries(read_entries(new.path, bucket=access.bucket), after)
                for difference in differences(left, right, by_content=by_content):
                    report(difference)

            await trio.to_thread.run_sync(compare)

    tasks.run(main)


class _Side(NamedTuple):
    """One side of a comparison as a file. ``absent``: the bucket and prefix below which nothing lies or ever lay."""

    path: Path
    absent: tuple[str, str] | None = None


def _must_be_somewhere(side: _Side, other: _Side, bucket: str | None) -> None:
    """Raises UsageError for a prefix that neither side knows. What only the other side has was removed, which a
    bucket without versions does not tell."""
    if side.absent is None:
        return
    entries = read_entries(other.path, bucket=bucket)
    if not any((e.bucket, e.key[: len(side.absent[1])]) == side.absent for e in entries):
        raise nothing_below(*side.absent)


@asynccontextmanager
async def _side(access: Access, source: str, at_ns: int | None, show: Show) -> AsyncIterator[_Side]:
    """See ``_Side``; a bucket is listed first, as it was at a time or is now."""
    if not is_live_bucket(source):
        async with brought_here(source, access.open_store) as path:
            yield _Side(path)
        return
    bucket, key = parse_s3(source)
    with tempfile.TemporaryDirectory(prefix="s3mount-") as name:
        path = Path(name) / "live.csv"
        async with access.open_store(bucket) as store:
            prefix = normal_prefix(key)
            listed = await list_to_file(
                store, bucket, prefix, at_ns, path, "csv", show, may_be_empty=True
            )
        is_absent = bool(prefix) and not listed.has_versions
        yield _Side(path, (bucket, prefix) if is_absent else None)


# ------------------------------------------------------------------------------ verify


def verify(
    access: Access,
    source: str,
    report: Callable[[Problem], None],
    show: Show,
    *,
    content: bool,
    workers: Workers | None = None,
) -> Verification:
    """Is every version still there, and with ``content``: are its bytes those of its ETag or checksum?

    ``report`` gets problems in the order of the manifest. With ``workers`` it is they who ask.
    Raises S3MountError where not even the first can be asked for.
    """
    found = Verification()
    rate = _Rate("versions checked")
    if workers is not None:

        def take(batch: Verified) -> None:
            found.add(batch.sums)
            for line in batch.problems:
                report(line.problem())

        found.stopped = _verified_by(workers, access, source, content, take, show)
        return found

    async def main() -> None:
        async with (
            brought_here(source, access.open_store) as path,
            open_buckets(access.open_store) as buckets,
        ):
            entries = sorted_entries(read_entries(path, bucket=access.bucket), source)
            work = partial(verifying.verify, entries, buckets, report, found, content=content)
            await _shown(work, show, lambda: f"{rate(found.checked)}, {found.problems:,} wrong")

    tasks.run(main)
    return found


class Workers(msgspec.Struct):
    """Who does the work (``local:N`` or a Dask cluster), how much of it at a time, and the log of what is done.

    ``is_finished``: nothing is left to be done.
    """

    pool: str
    size: Size
    log: Path
    is_finished: bool = False


def _verified_by(
    workers: Workers,
    access: Access,
    source: str,
    content: bool,
    take: Callable[[Verified], None],
    show: Show,
) -> str:
    """Have each entry verified; ``take`` gets what was found in the order of entries.

    Returns why it was not done to its end, if so. Raises S3MountError.
    """
    config = access.config
    if config.perf_logs:
        raise UsageError("the requests of one process are recorded: leave out --workers")
    if config.customer_key is not None and not config.customer_key.path:
        raise UsageError("workers read the key for SSE-C themselves: give --sse-c-key-file")
    kind, _, rest = workers.pool.partition(":")
    if kind == "local":
        pool = local_workers(int(rest))
    else:
        from s3mount.bulk.batches.dask_workers import dask_workers

        pool = dask_workers(workers.pool)
        config = msgspec.structs.replace(config, estimates_dir="")

    async def main() -> str:
        async with brought_here(source, access.open_store) as path:
            digest = await trio.to_thread.run_sync(digest_of, path)
            header = Header(digest, access.bucket, config.endpoint_url, content)
            entries = sorted_entries(read_entries(path, bucket=access.bucket), source)
            with ResultLog(workers.log, header) as log:
                spread = Spread(log, config, pool, content=content)
                rate = _Rate("versions checked")
                await _shown(
                    partial(spread.run, entries, workers.size, take),
                    show,
                    lambda: rate(spread.entries_done),
                )
        workers.is_finished = not spread.stopped
        return spread.stopped

    return tasks.run(main)


# ----------------------------------------------------------------------------- restore


class Restored(NamedTuple):
    """What a restore came to: all plans' counts, whether it was carried out, and how."""

    counts: dict[str, int]
    is_done: bool
    progress: Progress


def restore(
    access: Access,
    source: str,
    prefix: str | None,
    agree: Callable[[list[Plan]], bool],
    report: Callable[[Step, str], None],
    show: Show,
    *,
    deletes: bool,
) -> Restored:
    """Bring the live buckets back to the manifest ``source``, if ``agree`` says so of the plans.

    Only keys in the folder ``prefix``, where it is not ``None``. With ``deletes`` keys that the manifest
    does not name get a delete marker, there or else below what the manifest says that it lists.
    Raises S3MountError.
    """

    async def main() -> Restored:
        async with (
            brought_here(source, access.open_store) as path,
            open_buckets(access.open_store) as buckets,
        ):
            plans = await plans_of(
                access.bucket, source, path, prefix, buckets, show, deletes=deletes
            )
            try:
                return await carry_out_all(plans, buckets, agree, report, show)
            finally:
                for plan in plans:
                    plan.close()

    return tasks.run(main)


async def plans_of(
    home_bucket: str | None,
    source: str,
    path: Path,
    prefix: str | None,
    buckets: Buckets[str, Store],
    show: Show,
    *,
    deletes: bool,
) -> list[Plan]:
    """What a restore of the manifest ``source``, here at ``path``, would do to each bucket. Raises S3MountError.

    ``home_bucket``: of manifests that name none. Each plan is to be closed.
    """
    read = partial(read_entries, path, bucket=home_bucket)
    beginnings = await trio.to_thread.run_sync(lambda: shared_beginnings(read()))
    scopes = await trio.to_thread.run_sync(partial(scopes_of, path, bucket=home_bucket))
    if not beginnings:
        raise UsageError(f"{source} names no keys, so nothing says what to restore")
    selections = {
        bucket: select(source, bucket, scopes, shared, prefix, deletes=deletes)
        for bucket, shared in beginnings.items()
    }
    home, own = await trio.to_thread.run_sync(own_of, source, path)
    plans = []
    for bucket, group in groupby(sorted_entries(read(), source), lambda entry: entry.bucket):
        selection = selections[bucket]
        scans: list[Scan[ObjectVersion]] = []
        rate = _Rate("versions")
        work = partial(
            plan_restore,
            await buckets.of(bucket),
            selection,
            _only_below(group, selection.prefix),
            own=own if bucket == home else Own(size=own.size, md5=own.md5),
            on_scan=scans.append,
        )

        def text(
            rate: _Rate = rate, scans: list[Scan[ObjectVersion]] = scans, bucket: str = bucket
        ) -> str:
            return f"listing {bucket}: {rate(scans[0].listed if scans else 0)}"

        plans.append(await _shown(work, show, text))
    if not any(plan.found for plan in plans):
        raise UsageError(
            f"no key of {source} lies below {prefix!r}, and none is there: mind the spelling"
        )
    return plans


def _only_below(entries: Iterator[Entry], prefix: str) -> Iterator[Entry]:
    return (entry for entry in entries if entry.key.startswith(prefix))


async def carry_out_all(
    plans: list[Plan],
    buckets: Buckets[str, Store],
    agree: Callable[[list[Plan]], bool],
    report: Callable[[Step, str], None],
    show: Show,
) -> Restored:
    """Do what ``plans`` say, if ``agree`` says so of them. Raises S3MountError."""
    counts = {kind: sum(plan.counts[kind] for plan in plans) for kind in plans[0].counts}
    progress = Progress()
    for plan in plans:
        for step in plan:
            if step.do == "missing":
                report(step, why_missing(step))
    if not await trio.to_thread.run_sync(agree, plans):
        return Restored(counts, False, progress)
    rate = _Rate("keys")
    total = sum(plan.steps for plan in plans)

    def text() -> str:
        done = progress.copied + progress.deleted + progress.right + progress.failed
        return f"restoring: {rate(done)} of {total:,}"

    for plan in plans:
        store = await buckets.of(plan.bucket)
        await _shown(partial(carry_out, plan, store, progress, report), show, text)
        if progress.stopped:
            break
    return Restored(counts, True, progress)
