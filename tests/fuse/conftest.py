"""Fixtures of the tests on a real mount: a fresh folder in a shared mount, or a mount of one's own."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import QuickMount
from tests.fuse.places import Mounted, Place
from tests.fuse.stand_in import StandInContents, StandInMount
from tests.mounting import Mount
from tests.servers import S3Server

pytest.register_assert_rewrite("tests.fuse.trees")

STAND_IN = os.environ.get("S3MOUNT_TEST_STAND_IN", "")
SHARED_OPTIONS = ("--allow-other",) if os.geteuid() == 0 else ()
TRACEBACK = "Traceback (most recent call last)"
_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks of this folder."""
    config.addinivalue_line("markers", "needs_s3: not to be run on the stand-in folder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out on the stand-in what asks for a bucket or a mount."""
    if not STAND_IN:
        return
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("needs_s3") or "mount_factory" in asked:
            item.add_marker(pytest.mark.skip(reason="on the stand-in folder"))


class SharedMount:
    """A mount that many tests share; made anew when a test has left it dead."""

    def __init__(self, server: S3Server, factory: pytest.TempPathFactory) -> None:
        self._server = server
        self._factory = factory
        self._mount: QuickMount | None = None

    def alive(self) -> QuickMount:
        """The mount, which answers."""
        if self._mount is not None and _answers(self._mount.path):
            return self._mount
        self.close()
        bucket = self._server.make_bucket()
        folder = self._factory.mktemp("shared")
        self._mount = QuickMount(self._server, bucket, folder, SHARED_OPTIONS)
        self._mount.mount()
        return self._mount

    def close(self) -> None:
        """Take it away, with its bucket where the server stays."""
        mount, self._mount = self._mount, None
        if mount is not None:
            mount.close()
            if self._server.lasting:
                self._remove_what_xml_cannot_name(mount.bucket)
                self._server.remove_bucket(mount.bucket)

    def _remove_what_xml_cannot_name(self, bucket: str) -> None:
        """boto3's DeleteObjects writes control characters into its XML as they are."""
        client = self._server.boto3_client()
        for key in S3Contents(client, bucket).listing():
            if any(letter < " " for letter in key):
                client.delete_object(Bucket=bucket, Key=key)


def _answers(path: Path) -> bool:
    try:
        return path.is_mount() and bool(os.statvfs(path))
    except OSError:
        return False


def _fresh_folder(mount: Mounted, request: pytest.FixtureRequest) -> tuple[Path, str]:
    name = f"{request.node.originalname[:40]}-{next(_numbers)}"
    path = mount.path / name
    path.mkdir()
    return path, name + "/"


if STAND_IN:

    @pytest.fixture
    def place(request: pytest.FixtureRequest) -> Place:
        """A fresh folder in the shared mount."""
        mount = StandInMount(Path(STAND_IN))
        path, prefix = _fresh_folder(mount, request)
        return Place(mount, path, prefix, StandInContents(mount.path))

    @pytest.fixture
    def own_place() -> Place:
        """The top of a mount that only this test uses, with an empty bucket."""
        path = Path(tempfile.mkdtemp(dir=STAND_IN))
        return Place(StandInMount(path), path, "", StandInContents(path))

else:

    @pytest.fixture(scope="session")
    def shared_mount(
        s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[SharedMount]:
        """One mount on each server for the whole run."""
        shared = SharedMount(s3_server, tmp_path_factory)
        yield shared
        shared.close()

    @pytest.fixture
    def place(
        shared_mount: SharedMount, s3_server: S3Server, request: pytest.FixtureRequest
    ) -> Iterator[Place]:
        """A fresh folder in the shared mount. A traceback in its log fails the test."""
        mount = shared_mount.alive()
        log_start = mount.log_path.stat().st_size
        path, prefix = _fresh_folder(mount, request)
        yield Place(mount, path, prefix, S3Contents(s3_server.boto3_client(), mount.bucket))
        with mount.log_path.open("rb") as log:
            log.seek(log_start)
            written = log.read().decode(errors="replace")
        assert TRACEBACK not in written, written

    @pytest.fixture
    def own_place(
        s3_server: S3Server, bucket: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Place]:
        """The top of a mount that only this test uses, with an empty bucket."""
        mount = QuickMount(s3_server, bucket, tmp_path_factory.mktemp("own"), SHARED_OPTIONS)
        try:
            mount.mount()
            yield Place(mount, mount.path, "", S3Contents(s3_server.boto3_client(), bucket))
        finally:
            mount.close()
        written = mount.log_path.read_text(errors="replace")
        assert TRACEBACK not in written, written


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the mount's log with a test that failed on it."""
    report = yield
    for name in ("place", "own_place"):
        place = getattr(item, "funcargs", {}).get(name)
        if report.failed and isinstance(place, Place) and isinstance(place.mount, Mount):
            report.sections.append((f"log of the mount of {name}", place.mount.log))
    return report
