"""``manifest verify --workers``: the report is that of one process, whoever is killed in between."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.bulk.places import Places
from tests.bulk.test_killed import LetPass
from tests.fuse.bucket_contents import wait_until
from tests.servers.counting import Fault, Relay, Request

KEYS = 60


@pytest.fixture
def manifest(versioned: Places) -> str:
    """A manifest of which every seventh version is gone, and every eleventh says another size."""
    keys = [f"{number:03}" for number in range(KEYS)]
    versioned.put(*keys)
    path = versioned.folder / "m.csv"
    versioned.run("manifest", "create", "{b}", "-o", str(path))
    for key, version in versioned.versions()[::7]:
        versioned.client.delete_object(Bucket=versioned.bucket, Key=key, VersionId=version)
    lines = path.read_text().splitlines(keepends=True)
    for number in range(4, len(lines), 11):
        lines[number] = lines[number].replace(",3,", ",4,", 1)
    path.write_text("".join(lines))
    return str(path)


def workers_of(client: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the workers of a command."""
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    found = []
    for pid in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"batches.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


@pytest.mark.timeout(150)
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_the_report_is_the_same_after_kills_of_a_worker_and_the_client(
    versioned: Places, manifest: str
) -> None:
    verify = ("manifest", "verify", "--content", "--json", manifest)
    report = versioned.run(*verify, status=1).stdout
    assert report.count(b'"problem"') >= KEYS // 7
    spread = (*verify, "--workers", "local:2", "--batch", "4")
    assert versioned.run(*spread, status=1).stdout == report
    assert not list((versioned.folder / ".state").rglob("batches/*"))

    log = versioned.folder / "log"
    with Relay(versioned.server.endpoint_url) as relay:
        relay.decide = decide = LetPass(lambda r: int(is_asked(r)), Fault.HANG)
        decide.allow(15)
        client = subprocess.Popen(
            versioned.argv(*spread, "--resume", str(log), endpoint_url=relay.url),
            env=versioned.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=versioned.folder,
        )
        try:
            wait_until(lambda: decide.hung > 0, "the first requests hang", timeout_s=40)
            killed = workers_of(client)[0]
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: is_replaced(client, killed), "another worker", timeout_s=20)
            decide.allow(25)
            wait_until(lambda: decide.hung > 0, "more requests hang", timeout_s=40)
            left = workers_of(client)
        finally:
            client.kill()
            client.wait()
        wait_until(lambda: not any(map(is_alive, left)), "the workers are gone", timeout_s=20)
        done = len(log.read_bytes().splitlines()) - 1
        assert done > 0
        before = sum(map(is_asked, relay.requests()))
        decide.allow(10 * KEYS)
        again = versioned.run(*spread, "--resume", str(log), endpoint_url=relay.url, status=1)
        asked = sum(map(is_asked, relay.requests())) - before
    assert again.stdout == report
    assert asked <= 2 * (KEYS - 4 * done)
    assert versioned.server.secret_key.encode() not in log.read_bytes()


def is_asked(request: Request) -> bool:
    """Is it of an object?"""
    return request.method in ("HEAD", "GET") and "versionId=" in request.query


def is_replaced(client: subprocess.Popen[bytes], killed: int) -> bool:
    found = workers_of(client)
    return len(found) == 2 and killed not in found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
