"""``s3mount metrics`` of a real mount, and its page in a real browser."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from s3mount.metrics import SECTIONS, Metric
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import parked_in, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Answer, Relay, Request

pytestmark = pytest.mark.needs_s3
BROWSER_TIMEOUT_S = 90.0
PNG = b"\x89PNG"


@contextmanager
def told_by(mount: Mount) -> Iterator[str]:
    """The URL at which a process tells of this mount."""
    command = [sys.executable, "-m", "s3mount", "metrics", str(mount.path), "--listen", "0"]
    with subprocess.Popen(
        command, env=mount.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def fits(name: str, metric: Metric) -> bool:
    """Is ``metric`` the one of this name in a status?"""
    if not metric.name.endswith("*"):
        return name == metric.name
    beginning = metric.name.removesuffix("*")
    return name.startswith(beginning) and name.removeprefix(beginning) in metric.parts


def test_every_number_that_a_mount_tells_is_explained_and_served(
    bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(bucket)
    (mount.path / "file").write_bytes(b"counted")
    mount.wait()
    (mount.path / "file").read_bytes()
    status = status_of(mount)
    for section, metrics in SECTIONS.items():
        unknown = [
            name for name in status[section] if not any(fits(name, each) for each in metrics)
        ]
        assert unknown == [], section
        assert status[section]
    with told_by(mount) as url, urllib.request.urlopen(f"{url}metrics", timeout=20) as answer:
        families = {
            each.name: each for each in text_string_to_metric_families(answer.read().decode())
        }
    assert families["s3mount_up"].samples[0].value == 1
    assert families["s3mount_uploads"].samples[0].value >= 1
    processes = {
        each.labels["process"] for each in families["s3mount_process_memory_bytes"].samples
    }
    assert processes == {"mount", "engine"}


def test_a_mount_has_it_beside_it(bucket: str, mount_factory: Callable[..., Mount]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mount = mount_factory(bucket, "--metrics", str(port))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                return b"s3mount_up{" in answer.read()
        except OSError:
            return False

    wait_until(answers, "it answers")
    mount.kill9()
    wait_until(lambda: not answers(), "it ended with the mount")


def seen_by_a_browser(url: str, folder: Path) -> str:
    """The page's elements after its scripts ran; ``folder`` gets a screenshot. Skips without Chromium."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    picture = folder / "page.png"
    options = (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'browser'}", "--window-size=1000,900"),
        *("--virtual-time-budget=12000", f"--screenshot={picture}", "--dump-dom"),
    )
    done = subprocess.run(
        [browser, *options, url], capture_output=True, text=True, timeout=BROWSER_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(PNG)
    return done.stdout


@pytest.mark.timeout(240)
def test_the_page_in_a_browser(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server, tmp_path: Path
) -> None:
    def refuse(request: Request) -> Answer | None:
        is_refused = request.method == "PUT" and request.path.endswith("/refused")
        return Answer(403, "AccessDenied") if is_refused else None

    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        with told_by(mount) as url:
            well = seen_by_a_browser(url, tmp_path)
            assert "everything is in S3" in well
            relay.decide = refuse
            (mount.path / "refused").write_bytes(b"x")
            wait_until(lambda: bool(parked_in(mount)), "the refused file is parked")
            refused = seen_by_a_browser(url, tmp_path)
        assert "not in S3 yet" in refused
        assert "s3mount retry" in refused
        # The script ran: it sets the title, and what it fetched has charts with more than one sample.
        assert "<path d=" in refused
        relay.decide = lambda request: None
        mount.command("retry", str(mount.path))
        mount.wait()
