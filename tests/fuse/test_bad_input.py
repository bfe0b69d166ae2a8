"""What cannot be mounted: one clear line, a status, no traceback, nothing left mounted or running.

Each case runs the command as a person does, in the background and in the foreground.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.conftest import MountFactory
from tests.mounting import mounted_at
from tests.namespaces import in_mount_namespace, in_namespaces
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3

NOBODY_THERE = "http://127.0.0.1:9"
"""An endpoint for mounts that must fail before S3 is asked."""


class Attempt:
    """``s3mount BUCKET MNT`` that is to fail."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self.folder = folder
        self.environment = {
            **environment,
            "HOME": str(folder / "home"),
            "S3MOUNT_RUN_DIR": str(folder / "run"),
        }
        self.before: Sequence[str] = ()
        self.places = ["--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache")]

    def fails(
        self, bucket: str, *options: str, status: int = 1, ways: Sequence[str] = ("", "-f")
    ) -> str:
        """Run it both ways; the line that both said."""
        said = {
            self._run(
                [bucket, str(self.path), *self.places, *options, *filter(None, (way,))], status
            )
            for way in ways
        }
        assert len(said) == 1, said
        return said.pop()

    def _run(self, arguments: list[str], status: int) -> str:
        done = subprocess.run(
            [*self.before, sys.executable, "-m", "s3mount", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr + done.stdout
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if line.startswith("s3mount: ")]
        assert len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr
        assert not mounted_at(self.path)
        assert not self.left_running(), self.left_running()
        return lines[0].removeprefix("s3mount: ")

    def left_running(self) -> list[list[str]]:
        """Command lines of processes that still have to do with this attempt."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and str(self.path) in words:
                found.append(words)
        return found


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("S3MOUNT_")
    }
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    return Attempt(tmp_path, {**environment, **keys, "AWS_REGION": "us-east-1"})


@pytest.fixture
def at_server(attempt: Attempt, s3_server: S3Server) -> Attempt:
    attempt.environment.update(
        {name: value for name, value in s3_server.environment().items() if name.startswith("AWS_")}
    )
    attempt.places += ["--endpoint-url", s3_server.endpoint_url, "--path-style"]
    return attempt


# ------------------------------------------------------------------ the bucket


def test_no_such_bucket(at_server: Attempt) -> None:
    said = at_server.fails("no-such-bucket-anywhere")
    assert "'no-such-bucket-anywhere' does not exist" in said
    # It leaves nothing behind that status would tell of.
    at_server.environment["S3MOUNT_STATE_DIR"] = str(at_server.folder / "state")
    shown = subprocess.run(
        [sys.executable, "-m", "s3mount", "status"],
        env=at_server.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "no-such-bucket-anywhere" not in shown.stdout


def test_no_such_bucket_below_a_prefix(at_server: Attempt) -> None:
    assert "'no-such-bucket' does not exist" in at_server.fails("s3://no-such-bucket/some/where")


def test_an_access_key_that_the_store_does_not_know(attempt: Attempt, ceph: S3Server) -> None:
    said = attempt.fails("data", "--endpoint-url", ceph.endpoint_url, "--path-style")
    assert "does not know this access key id" in said


def test_a_wrong_secret(attempt: Attempt, ceph: S3Server) -> None:
    attempt.environment["AWS_ACCESS_KEY_ID"] = ceph.access_key
    said = attempt.fails("data", "--endpoint-url", ceph.endpoint_url, "--path-style")
    assert "check the secret access key" in said


def test_no_permission(attempt: Attempt, ceph: S3Server) -> None:
    bucket = ceph.make_bucket()
    try:
        said = attempt.fails(
            bucket, "--endpoint-url", ceph.endpoint_url, "--path-style", "--no-sign-request"
        )
    finally:
        if ceph.lasting:
            ceph.remove_bucket(bucket)
    assert "may not" in said


def test_no_credentials(attempt: Attempt, s3_server: S3Server) -> None:
    for name in list(attempt.environment):
        if name.startswith("AWS_") and "KEY" in name:
            del attempt.environment[name]
    said = attempt.fails("data", "--endpoint-url", s3_server.endpoint_url, "--path-style")
    assert "credentials" in said
    assert "AWS_ACCESS_KEY_ID" in said


def test_a_profile_that_is_not_there(attempt: Attempt) -> None:
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, "--profile", "none", status=2)
    assert "profile (none) could not be found" in said


@contextmanager
def answering(status: int, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """A server that answers all requests alike; its URL. It stands for a bucket of another region,
    which no server at hand refuses as AWS does."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_wrong_region(attempt: Attempt) -> None:
    body = (
        b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is "
        b"malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'</Message>"
        b"<Region>eu-central-1</Region><RequestId>R1</RequestId></Error>"
    )
    headers = {"x-amz-bucket-region": "eu-central-1", "Content-Type": "application/xml"}
    with answering(400, headers, body) as url:
        said = attempt.fails("data", "--endpoint-url", url, "--path-style")
    assert "eu-central-1" in said
    assert "region" in said


def test_a_server_that_is_no_s3(attempt: Attempt) -> None:
    with answering(404, {"Content-Type": "text/html"}, b"<html>not here</html>") as url:
        said = attempt.fails("data", "--endpoint-url", url, "--path-style")
    assert said


def test_an_endpoint_that_is_a_web_page(attempt: Attempt) -> None:
    page = b"<!DOCTYPE html><html><body>Welcome to this network</body></html>"
    with answering(200, {"Content-Type": "text/html"}, page) as url:
        said = attempt.fails("data", "--endpoint-url", url, "--path-style", ways=("",))
    assert url.removeprefix("http://") in said or "S3" in said
    assert "internal error" not in said


def test_a_port_where_nobody_listens(attempt: Attempt) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        said = attempt.fails("data", "--endpoint-url", f"http://127.0.0.1:{port}", "--path-style")
    assert f"cannot connect to 127.0.0.1:{port}" in said


def test_a_name_that_nobody_has(attempt: Attempt) -> None:
    said = attempt.fails("data", "--endpoint-url", "http://nowhere.invalid", ways=("",))
    assert "nowhere.invalid" in said


def test_a_server_that_never_answers(attempt: Attempt) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = attempt.fails("data", "--endpoint-url", url, "--path-style", ways=("",))
    assert f"S3 at {url} did not answer" in said


def test_a_certificate_that_is_not_trusted(attempt: Attempt, ceph: S3Server) -> None:
    if ceph.https_url is None:
        pytest.skip("the given server has no https")
    attempt.environment.pop("AWS_CA_BUNDLE", None)
    said = attempt.fails("data", "--endpoint-url", ceph.https_url, "--path-style")
    assert "certificate" in said


def test_what_is_pending_is_spoken_of_when_s3_cannot_be_reached(
    mount_factory: MountFactory, bucket: str, s3_server: S3Server
) -> None:
    mount = mount_factory(bucket, "--upload-delay", "1h")
    (mount.path / "kept").write_bytes(b"x" * 1000)
    mount.kill9()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        # The same endpoint, as the state belongs to it, but nobody there: by a proxy that is gone.
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        mount.environment |= {"HTTP_PROXY": proxy, "http_proxy": proxy}
        done = mount.command(
            *("mount", bucket, str(mount.path), "--endpoint-url", mount.endpoint_url),
            *("--path-style", "--state-dir", str(mount.state_dir)),
            *("--cache-dir", str(mount.cache_dir)),
        )
    if done.returncode == 0:
        mount.command("unmount", str(mount.path))
        pytest.fail("it does not ask the proxy")
    assert done.returncode == 1
    assert "changes that are not in S3 yet are kept in" in done.stderr
    assert not mount.mounted


# ------------------------------------------------------------- the mount point


def test_the_mount_point_does_not_exist(attempt: Attempt) -> None:
    attempt.path.rmdir()
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE)
    assert said == f"mount point {attempt.path} does not exist; make it with mkdir"


def test_the_mount_point_is_a_file(attempt: Attempt) -> None:
    attempt.path.rmdir()
    attempt.path.write_text("")
    assert attempt.fails("data", "--endpoint-url", NOBODY_THERE) == (
        f"mount point {attempt.path} is not a directory"
    )


def test_the_mount_point_is_not_empty(attempt: Attempt) -> None:
    (attempt.path / "file").write_text("")
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE)
    assert f"mount point {attempt.path} is not empty" in said
    assert "-o nonempty" in said
    assert (attempt.path / "file").exists()


def test_the_mount_point_may_be_covered_when_asked(
    mount_factory: MountFactory, bucket: str
) -> None:
    mount = mount_factory(bucket, "-o", "nonempty", mounted=False)
    (mount.path / "covered").write_text("still there")
    mount.mount()
    assert "covered" not in os.listdir(mount.path)
    mount.unmount()
    assert (mount.path / "covered").read_text() == "still there"


def test_something_is_mounted_already(mount_factory: MountFactory, bucket: str) -> None:
    mount = mount_factory(bucket)
    done = mount.command(
        *("mount", bucket, str(mount.path), "--endpoint-url", mount.endpoint_url, "--path-style"),
        *("--state-dir", str(mount.state_dir / "other"), "--cache-dir", str(mount.cache_dir)),
    )
    assert done.returncode == 1
    assert done.stderr == f"s3mount: {mount.path} is already mounted, with {bucket}\n"
    (mount.path / "works").write_text("on")
    mount.unmount()


# ---------------------------------------------------------------- this machine


def after(*script: str) -> list[str]:
    """The start of a command line that runs the rest after ``script``, in a mount namespace of its own."""
    lines = "; ".join(("set -e", *script, 'exec "$@"'))
    return [*in_mount_namespace(), "sh", "-c", lines, "sh"]


BARE_DEV = (
    "mount -t tmpfs none /dev",
    "mknod -m 666 /dev/null c 1 3",
    "mknod -m 666 /dev/urandom c 1 9",
)


def test_no_dev_fuse(attempt: Attempt) -> None:
    attempt.before = after(*BARE_DEV)
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE)
    assert "there is no /dev/fuse" in said
    assert "modprobe fuse" in said


def test_no_proc(attempt: Attempt) -> None:
    attempt.before = after("mount -t tmpfs none /proc")
    for arguments in (["data", str(attempt.path)], ["status"], ["unmount", str(attempt.path)]):
        said = attempt._run([*arguments], 1)
        assert "what is mounted cannot be read from /proc/self/mountinfo" in said


def test_paths_that_are_not_utf_8(attempt: Attempt) -> None:
    odd = os.fsdecode(os.fsencode(attempt.folder) + b"/\xff\xfe")
    os.mkdir(odd)
    shown = f"{attempt.folder}/\\xff\\xfe"
    said = attempt._run(["data", odd, "--endpoint-url", NOBODY_THERE], 2)
    assert said == f"the mount point {shown} is not UTF-8; choose another path"
    for name in ("state", "cache"):
        said = attempt.fails("data", f"--{name}-dir", odd, status=2)
        assert said.startswith(f"the {name} folder {shown}")
        assert said.endswith(" is not UTF-8; choose another path")
    said = attempt._run(["data", odd, "--at", "2026-01-01"], 2)
    assert "is not UTF-8" in said
    assert "is not a mounted bucket" in attempt._run(["status", odd], 1)


def test_dev_fuse_that_may_not_be_opened(attempt: Attempt) -> None:
    attempt.before = [
        *after(*BARE_DEV, "mknod -m 000 /dev/fuse c 10 229"),
        *WITHOUT_OVERRIDE,
    ]
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE)
    assert "/dev/fuse may not be opened (Permission denied)" in said


WITHOUT_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
"""Root that must obey file modes, as everybody else."""

as_stranger = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes root and setpriv"
)


@as_stranger
@pytest.mark.parametrize("name", ["state", "cache"])
def test_a_folder_that_is_not_writable(attempt: Attempt, name: str) -> None:
    folder = attempt.folder / "closed"
    folder.mkdir(mode=0o500)
    attempt.before = WITHOUT_OVERRIDE
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, f"--{name}-dir", str(folder / "x"))
    assert f"the {name} folder {folder}/x" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("name", ["state", "cache"])
def test_a_folder_that_cannot_be(attempt: Attempt, name: str) -> None:
    (attempt.folder / "file").write_text("")
    place = f"{attempt.folder}/file/x"
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, f"--{name}-dir", place)
    assert f"the {name} folder {place}" in said
    assert "Not a directory" in said


@pytest.mark.parametrize("name", ["state", "cache"])
def test_a_folder_below_the_mount_point(attempt: Attempt, name: str) -> None:
    place = attempt.path / "within"
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, f"--{name}-dir", str(place))
    assert f"the {name} folder {place}" in said
    assert f"lies below the mount point {attempt.path}" in said


def test_a_mount_point_inside_the_cache(attempt: Attempt) -> None:
    said = attempt.fails(
        "data", "--endpoint-url", NOBODY_THERE, "--cache-dir", str(attempt.path.parent)
    )
    assert f"the mount point {attempt.path} lies inside the cache folder" in said


def test_a_log_that_cannot_be_written(attempt: Attempt) -> None:
    place = f"{attempt.path.parent}/missing/log"
    (attempt.path.parent / "missing").write_text("")
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, "--log-file", place)
    assert f"the log {place} cannot be written" in said


def test_errors_are_told_beside_a_log_file_of_ones_own(at_server: Attempt) -> None:
    said = at_server.fails("no-such-bucket", "--log-file", str(at_server.folder / "log"))
    assert "does not exist" in said
    assert "does not exist" in (at_server.folder / "log").read_text()


def test_a_state_folder_in_use(mount_factory: MountFactory, bucket: str, tmp_path: Path) -> None:
    mount = mount_factory(bucket)
    (tmp_path / "second").mkdir()
    done = mount.command(
        *("mount", bucket, str(tmp_path / "second"), "--endpoint-url", mount.endpoint_url),
        *("--path-style", "--state-dir", str(mount.state_dir), "--cache-dir", str(mount.cache_dir)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"in use by process {mount.pid}, which has it mounted at {mount.path}" in done.stderr
    assert not mounted_at(tmp_path / "second")
    (mount.path / "works").write_text("on")
    mount.unmount()


# ------------------------------------------------------------------ not as root


def as_somebody(uid: int = 1000) -> list[str]:
    """A command line for a user that is not root, as the kernel and the programs see it."""
    return in_namespaces("--user", f"--map-user={uid}", f"--map-group={uid}")


def test_allow_other_takes_a_line_in_fuse_conf(attempt: Attempt) -> None:
    attempt.before = as_somebody()
    said = attempt.fails("data", "--endpoint-url", NOBODY_THERE, "--allow-other")
    assert "--allow-other needs a line 'user_allow_other' in /etc/fuse.conf" in said


def test_a_mount_that_the_kernel_refuses(
    attempt: Attempt, s3_server: S3Server, bucket: str
) -> None:
    attempt.before = as_somebody()
    attempt.environment.update(
        {name: value for name, value in s3_server.environment().items() if name.startswith("AWS_")}
    )
    said = attempt.fails(bucket, "--endpoint-url", s3_server.endpoint_url, "--path-style")
    assert f"cannot mount at {attempt.path}: " in said
    assert "mount failed" in said


# ----------------------------------------------------------------- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(attempt: Attempt, number: int) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "s3mount", "data", str(attempt.path), *attempt.places),
                *("--endpoint-url", url, "--path-style"),
            ],
            env=attempt.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        connection.close()
    assert process.returncode not in (0, None)
    assert "Traceback" not in said
    until(lambda: not attempt.left_running())
    assert not mounted_at(attempt.path)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
