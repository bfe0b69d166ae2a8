"""Counters of one store since its start, by the names in ``metrics.S3_METRICS``."""

from __future__ import annotations

LATE_S = 0.5
"""A try that ends this long behind its deadline outlived it; less is the loop's own delay."""


class Statistics:
    """Plain attributes, since they are bumped at every request."""

    def __init__(self) -> None:
        self.by_kind: dict[str, int] = {}
        self.requests = 0
        self.failed = 0
        self.retries = 0
        self.throttled = 0
        self.hedges = 0
        self.hedges_won = 0
        self.overdue = 0
        self.late = 0
        self.late_max_s = 0.0
        self.request_max_s = 0.0
        self.checksum_errors = 0
        self.opened = 0
        self.stale = 0
        self.bytes_sent = 0
        self.bytes_written = 0
        self.bytes_received = 0
        self.credentials_refreshed = 0

    def count(self, kind: str) -> None:
        """A try begins."""
        self.requests += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1

    def ended(self, lasted_s: float, behind_s: float) -> None:
        """A try ended ``behind_s`` after its deadline (negative: before it)."""
        if lasted_s > self.request_max_s:
            self.request_max_s = lasted_s
        if behind_s > self.late_max_s:
            self.late_max_s = behind_s
        if behind_s > LATE_S:
            self.late += 1

    def refreshed(self) -> None:
        """Credentials were renewed."""
        self.credentials_refreshed += 1

    def snapshot(self) -> dict[str, float]:
        """All counters by their public names."""
        return {
            "requests": self.requests,
            **{f"requests_{kind}": count for kind, count in sorted(self.by_kind.items())},
            "requests_failed": self.failed,
            "retries": self.retries,
            "throttled": self.throttled,
            "hedges": self.hedges,
            "hedges_won": self.hedges_won,
            "overdue": self.overdue,
            "late": self.late,
            "late_max_s": self.late_max_s,
            "request_max_s": self.request_max_s,
            "checksum_errors": self.checksum_errors,
            "connections_opened": self.opened,
            "connections_stale": self.stale,
            "bytes_sent": self.bytes_sent,
            "bytes_written": self.bytes_written,
            "bytes_received": self.bytes_received,
            "credentials_refreshed": self.credentials_refreshed,
        }
