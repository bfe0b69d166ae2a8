"""``manifest verify --workers`` with a Dask cluster of this machine, of which the processes are killed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk.places import Places
from tests.bulk.test_killed import LetPass
from tests.bulk.test_verify_workers import KEYS, is_asked, manifest
from tests.fuse.bucket_contents import wait_until
from tests.servers.counting import Fault, Relay

__all__ = ["manifest"]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="Dask is not installed (the dask extra)",
    ),
    pytest.mark.timeout(200),
    pytest.mark.parametrize("s3_server", ["ceph"], indirect=True),
]


class Cluster:
    """A scheduler and two workers, with one thread each."""

    def __init__(self, places: Places, name: str) -> None:
        self._places = places
        self.file = places.folder / name
        self._log = open(places.folder / f"{name}.log", "wb")  # noqa: SIM115  closed by end
        where = ("--scheduler-file", str(self.file), "--no-dashboard")
        self.scheduler = self._start("dask scheduler", *where, "--host", "127.0.0.1", "--port", "0")
        wait_until(self.file.exists, "the scheduler", timeout_s=40)
        self.workers = [
            self._start("dask worker", *where, "--nthreads", "1", "--no-nanny") for _ in range(2)
        ]
        wait_until(lambda: self.log.count(b"Register worker") == 2, "two workers", timeout_s=60)

    @property
    def log(self) -> bytes:
        """What all of them said."""
        return Path(self._log.name).read_bytes()

    def end(self) -> None:
        """Kill all."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self._log.close()

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        module = f"distributed.cli.{command.replace(' ', '_')}"
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self._places.environment(),
            cwd=self._places.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )


@pytest.fixture
def clusters(versioned: Places) -> Iterator[list[Cluster]]:
    """Two, of which one is for later."""
    made: list[Cluster] = []
    try:
        made.append(Cluster(versioned, "one"))
        made.append(Cluster(versioned, "two"))
        yield made
    finally:
        for cluster in made:
            cluster.end()


def test_the_report_is_the_same_after_kills_of_a_worker_and_the_scheduler(
    versioned: Places, manifest: str, clusters: list[Cluster]
) -> None:
    verify = ("manifest", "verify", "--json", manifest)
    report = versioned.run(*verify, status=1).stdout
    first, second = clusters
    log = versioned.folder / "log"
    with Relay(versioned.server.endpoint_url) as relay:
        relay.decide = decide = LetPass(lambda r: int(is_asked(r)), Fault.HANG)
        decide.allow(10)
        words = (*verify, "--batch", "4", "--resume", str(log))
        client = subprocess.Popen(
            versioned.argv(
                *words, "--workers", f"scheduler-file:{first.file}", endpoint_url=relay.url
            ),
            env=versioned.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=versioned.folder,
        )
        try:
            wait_until(lambda: decide.hung > 0, "the first requests hang", timeout_s=60)
            first.workers[0].kill()
            decide.allow(20)
            wait_until(lambda: decide.hung > 0, "the other worker's hang", timeout_s=60)
            before = log.read_bytes().count(b"\n") - 1
            first.scheduler.kill()
            told, said = client.communicate(timeout=60)
        finally:
            client.kill()
            client.wait()
        assert client.returncode == 1, said.decode()
        assert json.loads(told.splitlines()[-1])["stopped"] == (
            "the scheduler of the Dask cluster is gone"
        )
        assert said.decode().splitlines()[-1] == (
            f"s3mount: what is done is kept; go on with --resume {log}"
        )
        assert b"Traceback" not in said
        assert b"distributed" not in said
        assert before > 0
        first.end()
        decide.allow(10 * KEYS)
        asked = len([each for each in relay.requests() if is_asked(each)])
        again = versioned.run(
            *words,
            "--workers",
            f"scheduler-file:{second.file}",
            endpoint_url=relay.url,
            status=1,
        )
        asked = len([each for each in relay.requests() if is_asked(each)]) - asked
    assert again.stdout == report
    assert asked < KEYS - 4 * (before - 1)
    for worker in second.workers:
        worker.kill()
    wait_until(lambda: second.log.count(b"Remove worker") == 2, "no workers", timeout_s=40)
    where = f"scheduler-file:{second.file}"
    assert b"has no workers" in versioned.run(*verify, "--workers", where, status=1).stderr
    secret = versioned.server.secret_key.encode()
    assert not [each for each in (log.read_bytes(), first.log, second.log) if secret in each]


def test_a_scheduler_that_does_not_answer_is_told(versioned: Places, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("bucket,key,version_id\nb,k,null\n")
    verify = ("manifest", "verify", str(tmp_path / "m.csv"), "--workers")
    done = versioned.run(*verify, "dask://127.0.0.1:1", status=1)
    assert b"s3mount: --workers dask://127.0.0.1:1: no scheduler answers" in done.stderr
