"""Every metric in one table: its name, kind, unit and meaning.

Names of metrics with a part that varies end with ``_*``; the parts are listed with the meaning.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One metric. A counter only grows while its process lives; a gauge may fall."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str


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

METRICS: tuple[Metric, ...] = S3_METRICS + ENGINE_METRICS + LISTING_METRICS + LOOP_METRICS


def find(name: str) -> Metric:
    """The table's entry for a metric's full name. Raises KeyError for an unknown one."""
    for metric in METRICS:
        if name == metric.name:
            return metric
    for metric in METRICS:
        if metric.name.endswith("*") and name.startswith(metric.name[:-1]):
            return metric
    raise KeyError(name)
