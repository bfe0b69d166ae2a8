"""Fixtures that every test may use: real servers, buckets and mounts; and deadlines that hold.

A server is started when the first test asks for it, is the same for all workers, and ends with the run.
A test with ``s3_server`` runs on the first of those chosen; on each of them when it is marked
``each_server``, as what it shows depends on the server, or with S3MOUNT_TEST_LONG (``make test-long``).
Each of these variables
takes a server that runs already instead, for quick development: S3MOUNT_TEST_LOCALSTACK_URL;
S3MOUNT_TEST_CEPH_URL with _HTTPS_URL, _CA and _KEYS (``KEY:SECRET``). S3MOUNT_TEST_SERVERS names
the servers to test on, ``ceph,localstack`` by default. Any other server is one of them, called ``given``,
with S3MOUNT_TEST_S3_URL and S3MOUNT_TEST_S3_KEYS (``KEY:SECRET``), and S3MOUNT_TEST_S3_REGION if it needs one;
what it lacks is found by asking it, and the tests that need it are skipped.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck

from tests import mounting
from tests.databases import all_closed
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.chosen import shared
from tests.unexpected import none_expected

GIVEN_URL = os.environ.get("S3MOUNT_TEST_S3_URL", "")
SERVERS = ("ceph", "localstack", "given") if GIVEN_URL else ("ceph", "localstack")
LONG = bool(os.environ.get("S3MOUNT_TEST_LONG"))
MOUNT_GRACE_S = 15.0
"""How long after its deadline a test may still sit in the kernel before its mounts are killed."""

MountFactory = Callable[..., Mount]

# The time of one example says more about the machine than about the code, and every test has a deadline.
hypothesis.settings.register_profile(
    "tests", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def unexpected() -> Iterator[list[str]]:
    """Faults of background tasks in the test's own process; a test that expects some clears the list."""
    with none_expected() as told:
        yield told


@pytest.fixture(autouse=True)
def databases() -> Iterator[None]:
    """Whatever opens a database in the test's own process closes it."""
    with all_closed():
        yield


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """LocalStack's S3 provider."""
    with shared("localstack", folder_of_run(tmp_path_factory)) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A Ceph object gateway, with http and https."""
    with shared("ceph", folder_of_run(tmp_path_factory)) as server:
        yield server


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server at S3MOUNT_TEST_S3_URL, whatever it is."""
    if not GIVEN_URL:
        pytest.skip("S3MOUNT_TEST_S3_URL names no server")
    with shared("given", folder_of_run(tmp_path_factory)) as server:
        yield server


def folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a run, and no other run's."""
    base = factory.getbasetemp()
    return base if os.environ.get("PYTEST_XDIST_WORKER") is None else base.parent


@pytest.fixture(scope="session", params=SERVERS)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[str]:
    """An empty bucket of the test's own on ``s3_server``."""
    yield from own_bucket(s3_server, versioned=False)


@pytest.fixture
def versioned_bucket(s3_server: S3Server) -> Iterator[str]:
    """An empty bucket of the test's own on ``s3_server``, with versioning enabled."""
    yield from own_bucket(s3_server, versioned=True)


def own_bucket(server: S3Server, *, versioned: bool) -> Iterator[str]:
    """A bucket for one test; removed afterwards where the server outlives the run."""
    name = server.make_bucket(versioned=versioned)
    yield name
    if server.lasting:
        server.remove_bucket(name)


@pytest.fixture
def mount_factory(
    s3_server: S3Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountFactory]:
    """``mount_factory(bucket, *options, server=, endpoint_url=, environment=, mounted=True)``: a Mount.

    All that it made are taken away after the test. An unexpected traceback in a log fails the test.
    """
    mounts: list[Mount] = request.node.stash.setdefault(MOUNTS, [])

    def make(
        bucket: str,
        *options: str,
        server: S3Server = s3_server,
        endpoint_url: str | None = None,
        environment: dict[str, str] | None = None,
        mounted: bool = True,
    ) -> Mount:
        mount = Mount(
            server,
            bucket,
            tmp_path_factory.mktemp("mount"),
            options=options,
            endpoint_url=endpoint_url,
            environment=environment,
        )
        mounts.append(mount)
        if mounted:
            mount.mount()
        return mount

    yield make
    for mount in reversed(mounts):
        mount.close()
    for mount in mounts:
        assert "Traceback (most recent call last)" not in mount.log, mount.log


MOUNTS = pytest.StashKey[list[Mount]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of a failed test's mounts with it."""
    report = yield
    if report.failed:
        for mount in item.stash.get(MOUNTS, []):
            report.sections.append((f"log of the mount of {mount.bucket}", mount.log))
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark; let the tests' programs hear Ctrl-C, which a run in the background of a shell ignores."""
    config.addinivalue_line("markers", "each_server: what it shows depends on the S3 server")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failed test at once: a run is long, and the summary comes at its end."""
    if report.failed and os.environ.get("PYTEST_XDIST_WORKER") is None:
        sys.stderr.write(f"\n{report.when} of {report.nodeid} failed\n")
        sys.stderr.flush()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Free a test that waits in the kernel for a mount that does not answer.

    Such a wait takes no signal but SIGKILL, so the deadline of pytest-timeout cannot end it. Killing
    the mount's process makes the kernel fail the wait; the deadline's own signal follows.
    """
    rescue = threading.Timer(_deadline_s(item) + MOUNT_GRACE_S, mounting.kill_all)
    rescue.daemon = True
    rescue.start()
    try:
        return (yield)
    finally:
        rescue.cancel()


def _deadline_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        given: Sequence[Any] = marker.args or (marker.kwargs.get("timeout"),)
        return float(given[0])
    return float(item.config.getini("timeout"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the servers that S3MOUNT_TEST_SERVERS leaves out; leave out what one server is enough for."""
    chosen = os.environ.get("S3MOUNT_TEST_SERVERS", ",".join(SERVERS)).split(",")
    unknown = set(chosen) - set(SERVERS)
    if unknown:
        raise pytest.UsageError(f"S3MOUNT_TEST_SERVERS: no server called {', '.join(unknown)}")
    needless = [item for item in items if not LONG and _is_needless(item, chosen[0])]
    config.hook.pytest_deselected(items=needless)
    items[:] = [item for item in items if item not in set(needless)]
    for item in items:
        asked = set(getattr(item, "fixturenames", ())) & set(SERVERS)
        # A parameter that names a server, or a way to reach one: "ceph", "ceph-https".
        told = {str(value).partition("-")[0] for value in _parameters(item).values()}
        asked |= told & set(SERVERS)
        for name in asked - set(chosen):
            item.add_marker(pytest.mark.skip(reason=f"S3MOUNT_TEST_SERVERS leaves out {name}"))


def _is_needless(item: pytest.Item, server: str) -> bool:
    """Is it a further run, on another server, of what ``server`` is enough for?"""
    if item.get_closest_marker("each_server") is not None:
        return False
    chosen_itself = any("s3_server" in mark.args[0] for mark in item.iter_markers("parametrize"))
    return not chosen_itself and _parameters(item).get("s3_server", server) != server


def _parameters(item: pytest.Item) -> dict[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the developer's own AWS settings and s3mount's default folders out of every test."""
    home: Path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "XDG_")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield
    mounting.close_all()
