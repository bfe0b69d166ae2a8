"""Metrics and page of mounts: every number of the status is there, nothing is markup that should be text."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from s3mount.errors import UsageError
from s3mount.metrics import SECTIONS, exported_name
from s3mount.monitor.exposition import OTHER_METRICS, text_of
from s3mount.monitor.history import History
from s3mount.monitor.page import page
from s3mount.monitor.server import Monitor, parse_address
from s3mount.status import Conflict, Missing, MissingVersion, Pending, PendingChange, Snapshot

EVIL = "<script>alert('\"&')</script>"
WELL = Snapshot(
    mountpoint="/mnt/a",
    source="s3://bucket/a",
    phase="serving",
    bucket="bucket",
    prefix="a/",
    pending=Pending(
        changes=2,
        bytes=30,
        states={"queued": 1, "parked": 1},
        list=(
            PendingChange(key="one", state="queued", size=10),
            PendingChange(
                key=EVIL, state="parked", size=20, attempts=3, error="refused", error_kind="X"
            ),
        ),
    ),
    conflicts=(Conflict(10**18, "both", "kept-both", "both.conflict"),),
    missing=Missing(1, (MissingVersion("gone", "v1", "destroyed"),)),
    s3={"requests": 7.0, "requests_put": 4.0, "bytes_sent": 100.0, "request_max_s": 0.5},
    uploads={"uploads": 3},
    cache={"cache_hits": 3, "cache_misses": 1, "cache_bytes": 10, "cache_bytes_max": 100},
    spool={"used_bytes": 30, "max_bytes": 1000, "disk_free_bytes": None},
    loop={"turn_max_s": 0.01},
)
DEAD = Snapshot(mountpoint="/mnt/b", source="other", phase="dead")


def collected(*mounts: Snapshot) -> dict[tuple[str, ...], float]:
    """Every sample: its name and labels but the mount point."""
    text = text_of(lambda: mounts)
    return {
        (
            sample.name,
            *(v for k, v in sorted(sample.labels.items()) if k != "mountpoint"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_number_of_the_status_is_a_metric() -> None:
    found = collected(WELL)
    assert found["s3mount_s3_requests_total",] == 7
    assert found["s3mount_s3_requests_by_kind_total", "put"] == 4
    assert found["s3mount_s3_bytes_sent_total",] == 100
    assert found["s3mount_s3_request_max_seconds",] == 0.5
    assert found["s3mount_uploads_total",] == 3
    assert found["s3mount_cache_hits_total",] == 3
    assert found["s3mount_spool_used_bytes",] == 30
    assert found["s3mount_pending_changes", "parked"] == 1
    assert found["s3mount_missing_files",] == 1
    assert ("s3mount_spool_disk_free_bytes",) not in found


def test_a_mount_that_is_dead_is_told_to_be_down_and_nothing_else() -> None:
    assert collected(DEAD) == {
        ("s3mount_up",): 0,
        ("s3mount_mount_info", "", "dead", "", ""): 1,
    }


def test_names_are_unique() -> None:
    names = [
        exported_name(section, metric) + ("_by_kind" if metric.name.endswith("*") else "")
        for section, metrics in SECTIONS.items()
        for metric in metrics
    ] + [name for name, _, _ in OTHER_METRICS]
    assert len(names) == len(set(names))


def test_rates_begin_anew_with_the_process() -> None:
    history = History()
    for at_s, sent in ((0.0, 0.0), (2.0, 100.0), (4.0, 100.0)):
        history.take(
            [msgspec.structs.replace(WELL, s3={"bytes_sent": sent, "requests": sent})], at_s
        )
    assert [each.sent_bytes for each in history.rates("/mnt/a")] == [50.0, 0.0]
    history.take([msgspec.structs.replace(WELL, s3={"bytes_sent": 5.0, "requests": 1.0})], 6.0)
    assert history.rates("/mnt/a") == []
    history.take([], 8.0)
    history.take([WELL], 10.0)
    assert history.rates("/mnt/a") == []


def test_the_page_tells_what_is_wrong_and_what_to_do() -> None:
    shown = page([msgspec.structs.replace(WELL, outage="nobody answers"), DEAD], History())
    for text in (
        "nobody answers",
        "its process is gone",
        "both.conflict",
        "destroyed",
        "s3mount retry",
    ):
        assert text in shown
    assert EVIL not in shown
    assert "&lt;script&gt;" in shown


@pytest.fixture
def served() -> Iterator[Monitor]:
    mounts: Sequence[Snapshot] = [WELL]
    monitor = Monitor(lambda: mounts, "127.0.0.1", 0)
    thread = threading.Thread(target=monitor.run)
    thread.start()
    yield monitor
    monitor.end()
    thread.join(10)
    assert not thread.is_alive()


def asked(port: int, path: str, method: str = "GET", host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_it_is_served_to_be_read_and_only_on_this_machine(served: Monitor) -> None:
    port = served.port
    for path, part in (
        ("/", "<main>"),
        ("/mounts", "<section>"),
        ("/metrics", "s3mount_up{"),
        ("/style.css", "body"),
        ("/live.js", "fetch"),
    ):
        status, body = asked(port, path)
        assert (status, part in body) == (200, True)
    assert asked(port, "/etc/passwd")[0] == 404
    assert asked(port, "/", method="POST")[0] == 405
    assert asked(port, "/", host="rebound.example")[0] == 403


@pytest.mark.parametrize(
    "text", ["127.0.0.1:x", "1.2.3.4:99999", "http://x", "user@host:1", "99999"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)
