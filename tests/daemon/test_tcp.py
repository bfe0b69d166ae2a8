"""s3daemon's clients, byte for byte, and what they may have sent."""

from __future__ import annotations

import concurrent.futures
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.daemons import Daemon

NOBODY = 65534
FILES = int(os.environ.get("S3MOUNT_TEST_TCP_FILES", "200"))
FILE_BYTES = int(os.environ.get("S3MOUNT_TEST_TCP_FILE_BYTES", str(1 << 14)))
LINE = re.compile(r"INFO (.+) __main__ - ([0-9]+.[0-9]+) ([0-9]+.[0-9]+) sec - (.+)")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


class Served:
    """A daemon that serves s3daemon's clients at ``port``; ``ask`` is one of them."""

    def __init__(self, daemon: Daemon, *roots: str) -> None:
        self.daemon = daemon
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = {
            "S3DAEMON_PORT": str(self.port),
            "S3DAEMON_LOG": str(daemon.folder / "requests.log"),
            "S3_ENDPOINT_URL": daemon.server.endpoint_url,
        }
        options = [word for root in roots for word in ("--tcp-root", root)]
        daemon.start("--tcp", *options, environment=self.environment)

    def connect(self, uid: int | None = None) -> socket.socket:
        """A connection, of another user's."""
        client = socket.socket()
        if uid is not None:
            client.close()
            os.seteuid(uid)
            try:
                client = socket.socket()
            finally:
                os.seteuid(0)
        client.settimeout(40)
        client.connect(("127.0.0.1", self.port))
        return client

    def ask(self, request: bytes, uid: int | None = None, *, half_close: bool = False) -> bytes:
        """All that comes back."""
        with self.connect(uid) as client:
            client.sendall(request)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            return _all(client)

    @property
    def lines(self) -> list[str]:
        """What was logged of requests."""
        return (self.daemon.folder / "requests.log").read_text().splitlines()


def _all(client: socket.socket) -> bytes:
    said = b""
    while chunk := client.recv(4096):
        said += chunk
    return said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_protocol_byte_for_byte(daemon: Daemon, tmp_path: Path) -> None:
    served = Served(daemon)
    (tmp_path / "a file").write_bytes(b"its bytes")
    path = os.fsencode(tmp_path)
    bucket = daemon.bucket.encode()
    assert served.ask(b"%s/a file /%s/one\n" % (path, bucket)) == b"Success"
    assert served.ask(b"%s/a file any/%s/a/b\r\n" % (path, bucket)) == b"Success"
    assert served.ask(b"%s/a file any/%s/half" % (path, bucket), half_close=True) == b"Success"
    assert daemon.keys() == ["a/b", "half", "one"]
    assert daemon.body("half") == b"its bytes"
    missing = served.ask(b"%s/none /%s/none\n" % (path, bucket))
    assert missing == b"FileNotFoundError(2, 'No such file or directory')"
    assert served.ask(b"\n") == b"Empty request"
    assert served.ask(b"", half_close=True) == b"Empty request"
    garbage = (
        *(b"one\n", b"it /bucket\n", b"it bucket\n", b"\xff\xfe \xff/\xff/\xff\n", b"it //key\n"),
        *(
            b"it /b/folder/\n",
            b"\0 /b/k\n",
            b"x" * 100_000 + b"\n",
            b"it /b/" + b"k" * 2000 + b"\n",
        ),
    )
    for each in garbage:
        assert served.ask(each).startswith(b"ValueError("), each
    assert served.ask(b"%s/a file /%s/more\nand more\n" % (path, bucket)) == b"Success"
    assert served.lines[0].startswith("INFO ")
    assert served.lines[0].endswith(" __main__ - Starting server")
    found = [match for match in map(LINE.match, served.lines) if match is not None]
    assert [match[4] for match in found] == ["one", "a/b", "half", "more"]
    assert all(abs(time.time() - float(match[2])) < 300 for match in found)


def test_what_s3_refuses_is_told_and_not_sent_later(daemon: Daemon, tmp_path: Path) -> None:
    served = Served(daemon)
    (tmp_path / "it").write_bytes(b"it")
    said = served.ask(b"%s/it /%s-not-there/it\n" % (os.fsencode(tmp_path), daemon.bucket.encode()))
    assert b"Success" not in said
    assert b"\n" not in said
    assert b"bucket" in said.lower()
    told = daemon.run("status", f"s3://{daemon.bucket}-not-there").stdout
    assert b"everything is in S3" in told


def test_silent_clients_block_nobody(daemon: Daemon, tmp_path: Path) -> None:
    served = Served(daemon)
    (tmp_path / "it").write_bytes(b"it")
    silent = [served.connect() for _ in range(40)]
    try:
        request = b"%s/it /%s/it\n" % (os.fsencode(tmp_path), daemon.bucket.encode())
        began = time.monotonic()
        assert served.ask(request) == b"Success"
        assert time.monotonic() - began < 9
        assert _all(silent[0]) == b"TimeoutError('no request within 10 s')"
    finally:
        for each in silent:
            each.close()


@pytest.mark.timeout(120 + FILES)
def test_many_files_by_25_clients_at_once(daemon: Daemon, tmp_path: Path) -> None:
    served = Served(daemon)
    bodies = {f"{number:04}": os.urandom(FILE_BYTES) for number in range(FILES)}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)

    def send(name: str) -> bytes:
        return served.ask(
            b"%s/%s /%s/%s\n"
            % (os.fsencode(tmp_path), name.encode(), daemon.bucket.encode(), name.encode())
        )

    with concurrent.futures.ThreadPoolExecutor(25) as clients:
        answers = list(clients.map(send, bodies))
    assert set(answers) == {b"Success"}
    assert daemon.keys() == sorted(bodies)
    assert all(daemon.body(name) == body for name, body in list(bodies.items())[::20])


@needs_root
def test_a_client_gets_only_what_it_may_read(daemon: Daemon, open_folder: Path) -> None:
    served = Served(daemon)
    folder = os.fsencode(open_folder)

    def make(name: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        path = open_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"secret")
        os.chown(path, uid, gid)
        path.chmod(mode)

    make("own", 0o600, NOBODY, NOBODY)
    make("group", 0o640, 0, NOBODY)
    make("everybody", 0o644)
    make("roots", 0o600)
    make("closed/everybody", 0o644)
    (open_folder / "closed").chmod(0o700)
    (open_folder / "link").symlink_to(open_folder / "roots")

    def ask(name: str, uid: int | None) -> bytes:
        key = name.encode()
        return served.ask(b"%s/%s /%s/%s\n" % (folder, key, daemon.bucket.encode(), key), uid)

    assert [ask(name, NOBODY) for name in ("own", "group", "everybody")] == [b"Success"] * 3
    denied = b"PermissionError(13, 'Permission denied')"
    assert [ask(name, NOBODY) for name in ("roots", "closed/everybody", "link")] == [denied] * 3
    assert daemon.keys() == ["everybody", "group", "own"]
    assert f"user {NOBODY} may not read" in daemon.log
    assert ask("roots", None) == b"Success"


@needs_root
def test_a_root_lets_everybody_have_sent_what_lies_below(daemon: Daemon, open_folder: Path) -> None:
    below = open_folder / "below"
    below.mkdir()
    served = Served(daemon, str(below))
    (below / "it").write_bytes(b"it")
    (below / "it").chmod(0o600)
    (open_folder / "other").write_bytes(b"other")
    (open_folder / "other").chmod(0o600)
    (below / "link").symlink_to(open_folder / "other")
    bucket = daemon.bucket.encode()
    assert served.ask(b"%s/it /%s/it\n" % (os.fsencode(below), bucket), NOBODY) == b"Success"
    for name in (b"%s/../other", b"%s/link"):
        request = (name + b" /%s/other\n") % (os.fsencode(below), bucket)
        assert served.ask(request, NOBODY).startswith(b"PermissionError(")
    assert daemon.keys() == ["it"]


@needs_root
def test_of_a_client_that_has_gone_nobody_knows_who_it_was(
    daemon: Daemon, open_folder: Path
) -> None:
    served = Served(daemon)
    (open_folder / "roots").write_bytes(b"secret")
    (open_folder / "roots").chmod(0o600)
    for _ in range(20):
        with served.connect(NOBODY) as client:
            client.sendall(
                b"%s/roots /%s/roots\n" % (os.fsencode(open_folder), daemon.bucket.encode())
            )
    (open_folder / "mine").write_bytes(b"mine")
    request = b"%s/mine /%s/mine\n" % (os.fsencode(open_folder), daemon.bucket.encode())
    assert served.ask(request) == b"Success"
    assert daemon.keys() == ["mine"]


def test_its_names_and_its_client(daemon: Daemon, tmp_path: Path) -> None:
    served = Served(daemon)
    (tmp_path / "it").write_bytes(b"it")
    call = "import sys; from s3mount.cli import s3daemon; sys.exit(s3daemon.{}())"

    def run(what: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", call.format(what), *words],
            env=daemon.environment() | served.environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=40,
        )

    done = run("send", "it", f"any/{daemon.bucket}/it")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run("send", "none", f"any/{daemon.bucket}/none")
    assert (done.returncode, done.stderr) == (
        1,
        b"FileNotFoundError(2, 'No such file or directory')\n",
    )
    assert run("send", "it").returncode == 1
    said = run("serve", "--socket", str(tmp_path / "other.sock"))
    assert said.returncode == 1
    assert b"cannot listen at localhost:" in said.stderr


def test_other_addresses_than_loopback_are_refused(daemon: Daemon) -> None:
    said = daemon.run("daemon", "--tcp", "0.0.0.0:15555", status=2).stderr
    assert b"only addresses of this machine itself" in said
