"""Every metric in one table: its name, kind, unit and meaning.

Names of metrics with a part that varies end with ``_*``; the parts are listed with the meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One metric. A counter only grows while its process lives; a gauge may fall."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str

    @property
    def parts(self) -> tuple[str, ...]:
        """What may stand for the ``*`` of the name: the words behind the meaning's colon."""
        return tuple(self.meaning.partition(": ")[2].split(", "))


S3_METRICS = (
    Metric("requests", "counter", "1", "tries of requests to S3, answered or not"),
    Metric(
        "requests_*",
        "counter",
        "1",
        "the same by kind: head, get, fetch, put, copy, rename, append, delete, delete_many, list, list_versions, "
        "create_multipart, upload_part, upload_part_copy, complete_multipart, abort_multipart, "
        "list_parts, list_uploads, check_bucket, lifecycle, probe",
    ),
    Metric("requests_failed", "counter", "1", "tries that ended with an error of any kind"),
    Metric("retries", "counter", "1", "tries that repeated a failed one"),
    Metric("throttled", "counter", "1", "tries that the store refused to slow us down"),
    Metric("hedges", "counter", "1", "reading requests sent beside one that was late"),
    Metric("hedges_won", "counter", "1", "of these, those that were answered first"),
    Metric("overdue", "counter", "1", "tries that were cancelled at their deadline"),
    Metric("late", "counter", "1", "tries that ended more than 0.5 s behind their deadline"),
    Metric("late_max_s", "gauge", "s", "the most that a try ended behind its deadline"),
    Metric("request_max_s", "gauge", "s", "the longest try, from its first byte or connect on"),
    Metric("checksum_errors", "counter", "1", "bodies whose digest was wrong, in either direction"),
    Metric("connections_opened", "counter", "1", "connections opened by the HTTP client"),
    Metric("tls_sessions_resumed", "gauge", "1", "of these, TLS sessions taken over from others"),
    Metric("connections_stale", "counter", "1", "kept connections that the store had closed"),
    Metric(
        "bytes_sent", "counter", "B", "bytes of request heads and bodies, failed tries included"
    ),
    Metric(
        "bytes_written",
        "gauge",
        "B",
        "bytes of requests that change S3, under way or answered well: a failed try's are taken back",
    ),
    Metric("bytes_received", "counter", "B", "bytes of answers' bodies, failed tries included"),
    Metric("requests_running", "gauge", "1", "tries under way"),
    Metric("window_read", "gauge", "1", "reading requests that may be under way at once"),
    Metric("window_write", "gauge", "1", "writing requests that may be under way at once"),
    Metric("round_trip_s", "gauge", "s", "the least round trip of the network in ten minutes"),
    Metric("credentials_refreshed", "counter", "1", "times that expiring credentials were renewed"),
)
"""What ``Store.statistics`` tells."""

ENGINE_METRICS = (
    Metric(
        "engine_restarts", "counter", "1", "engine processes that died unasked and were replaced"
    ),
    Metric("engine_turn_max_s", "gauge", "s", "the longest turn of the engine's loop"),
    Metric("engine_turn_cpu_max_s", "gauge", "s", "the most processor time of such a turn"),
)
"""What the engine and its client add to it."""

LISTING_METRICS = (
    Metric("inode_bytes", "gauge", "B", "memory that inodes and listings take, about"),
    Metric("inode_bytes_each", "gauge", "B", "the same for each inode"),
    Metric("inode_bytes_max", "gauge", "B", "above this, what was not used for longest is dropped"),
    Metric("inodes_unpacked", "gauge", "1", "inodes that were more than listed"),
    Metric("inodes_dropped", "counter", "1", "inodes that were dropped to make room"),
    Metric("ahead_walks", "counter", "1", "walks of a tree that were recognised"),
    Metric("ahead_pages", "counter", "1", "flat pages that were listed ahead of them"),
    Metric("ahead_used", "counter", "1", "directories listed ahead and then asked for"),
    Metric("ahead_unused", "counter", "1", "directories listed ahead in vain"),
)
"""What ``status`` tells under ``listings``."""

LOOP_METRICS = (
    Metric("turn_max_s", "gauge", "s", "the longest turn of the mount's loop: nobody is answered"),
    Metric("turn_cpu_max_s", "gauge", "s", "the most processor time of a turn"),
    Metric("turn_recent_s", "gauge", "s", "the longest turn since the status before"),
    Metric("turn_recent_cpu_s", "gauge", "s", "the most processor time of a turn since then"),
    Metric("turns_slow", "counter", "1", "turns with more than 0.05 s of processor time"),
    Metric(
        "turns_stuck", "counter", "1", "turns that took more than a second; the log tells where"
    ),
)
"""What ``status`` tells under ``loop``."""

UPLOAD_METRICS = (
    Metric("uploads", "counter", "1", "changes that S3 took"),
    Metric("uploaded_bytes", "counter", "B", "bytes of contents that were sent and taken"),
    Metric("copied_bytes", "counter", "B", "bytes of parts that S3 copied itself"),
    Metric("deduplicated", "counter", "1", "files that S3 had already and copied"),
    Metric("saved_bytes", "counter", "B", "bytes that were not sent for that"),
    Metric("postponed", "counter", "1", "tries to send a change that failed and are repeated"),
    Metric("parked", "counter", "1", "times that S3 refused a change for good"),
    Metric("conflicts", "counter", "1", "keys that somebody else wrote first"),
    Metric("overwritten", "counter", "1", "of these, times that ours replaced theirs"),
)
"""What ``status`` tells under ``uploads``."""

CACHE_METRICS = (
    Metric("cache_hits", "counter", "1", "reads whose bytes lay on the local disk"),
    Metric("cache_misses", "counter", "1", "reads that waited for S3"),
    Metric("cache_bytes", "gauge", "B", "bytes that the cache holds"),
    Metric("cache_bytes_max", "gauge", "B", "bytes that it may hold"),
    Metric("cache_evicted_bytes", "counter", "B", "bytes that were evicted to make room"),
    Metric("cache_damaged", "counter", "1", "blocks that the disk had altered and that came anew"),
    Metric("cache_requests", "counter", "1", "requests for bytes of objects"),
    Metric("cache_fetched_bytes", "counter", "B", "bytes that these brought"),
    Metric("cache_prefetch_bytes", "gauge", "B", "bytes on their way ahead of readers"),
    Metric("cache_prefetch_failures", "counter", "1", "requests ahead of readers that failed"),
    Metric("cache_open_entries", "gauge", "1", "contents that are open in the cache"),
    Metric("files_ahead_asked", "counter", "1", "files that were fetched before they were opened"),
    Metric("files_ahead_used", "counter", "1", "of these, files that were opened then"),
    Metric("files_ahead_unused", "counter", "1", "of these, files that nobody opened"),
)
"""What ``status`` tells under ``cache``."""

SPOOL_METRICS = (
    Metric("used_bytes", "gauge", "B", "bytes of files that are not in S3 yet"),
    Metric("max_bytes", "gauge", "B", "bytes that the spool may hold"),
    Metric("disk_free_bytes", "gauge", "B", "room left on the disk below the spool"),
)
"""What ``status`` tells under ``spool``."""

SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "s3": S3_METRICS + ENGINE_METRICS,
    "listings": LISTING_METRICS,
    "loop": LOOP_METRICS,
    "uploads": UPLOAD_METRICS,
    "cache": CACHE_METRICS,
    "spool": SPOOL_METRICS,
}
"""The metrics by the part of a mount's status that tells them."""

METRICS: tuple[Metric, ...] = tuple(metric for each in SECTIONS.values() for metric in each)


def exported_name(section: str, metric: Metric) -> str:
    """The name of a metric where Prometheus collects it: with its unit, without ``_total``.

    >>> exported_name("s3", Metric("requests_*", "counter", "1", ""))
    's3mount_s3_requests'
    >>> exported_name("loop", Metric("turn_max_s", "gauge", "s", ""))
    's3mount_loop_turn_max_seconds'
    """
    name = metric.name.removesuffix("_*").removeprefix(f"{section}_")
    if metric.unit == "s":
        name = f"{name.removesuffix('_s')}_seconds"
    if metric.unit == "B" and not re.search("_bytes(_|$)|^bytes_", f"_{name}_"):
        name = f"{name}_bytes"
    return f"s3mount_{section}" if name == section else f"s3mount_{section}_{name}"


def find(name: str) -> Metric:
    """The table's entry for a metric's full name. Raises KeyError for an unknown one."""
    for metric in METRICS:
        if name == metric.name:
            return metric
    for metric in METRICS:
        if metric.name.endswith("*") and name.startswith(metric.name[:-1]):
            return metric
    raise KeyError(name)
