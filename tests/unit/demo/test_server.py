"""The embedded server: found, started, kept to this machine, ended."""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
from pathlib import Path

import pytest

from s3mount.demo import server
from s3mount.demo.server import DemoServer, free_port, server_python
from s3mount.errors import S3MountError, UsageError
from tests.servers import S3Server

LISTENING = "0A"


def listening_addresses(port: int) -> set[str]:
    """The local addresses, in the kernel's hexadecimal, on which somebody listens on ``port``."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not os.path.exists(table):
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port_hex = fields[1].partition(":")
            if fields[3] == LISTENING and int(port_hex, 16) == port:
                found.add(address)
    return found


def test_it_serves_s3_here_only_and_leaves_nothing(tmp_path: Path) -> None:
    with DemoServer(data_dir=tmp_path) as demo:
        assert listening_addresses(demo.port) == {"0100007F"}
        client = S3Server(
            name="demo",
            endpoint_url=demo.endpoint_url,
            access_key=demo.access_key,
            secret_key=demo.secret_key,
        ).boto3_client()
        client.create_bucket(Bucket="one")
        client.put_object(Bucket="one", Key="key", Body=b"bytes")
        assert client.get_object(Bucket="one", Key="key")["Body"].read() == b"bytes"
        assert demo.is_running()
        with pytest.raises(S3MountError, match="runs already"):
            demo.start()
    assert not demo.is_running()
    assert listening_addresses(demo.port) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(S3MountError, match=r"did not start: .*Address already in use"),
            DemoServer(data_dir=tmp_path, port=port),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_port_lost_to_somebody_else_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        offers = [taken.getsockname()[1], free_port()]
        monkeypatch.setattr(server, "free_port", lambda: offers.pop(0))
        with DemoServer(data_dir=tmp_path) as demo:
            connection = http.client.HTTPConnection(server.HOST, demo.port, timeout=10)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()
    assert offers == []


def test_a_server_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named localstack'\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv(server.PYTHON_VARIABLE, str(broken))
    with pytest.raises(S3MountError, match="did not start: No module named localstack"):
        DemoServer(data_dir=tmp_path).start()


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setenv(server.PYTHON_VARIABLE, str(silent))
    with pytest.raises(S3MountError, match="no answer within 1 s"):
        DemoServer(data_dir=tmp_path, start_timeout_s=1.0).start()
    assert list(tmp_path.iterdir()) == [silent]


def test_the_variable_names_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.PYTHON_VARIABLE, "/bin/sh")
    assert server_python() == "/bin/sh"
    monkeypatch.setenv(server.PYTHON_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no program there"):
        server_python()


def test_without_the_server_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(server.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(server, "PROJECT_PYTHON", tmp_path / "nothing")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(S3MountError, match=r"pip install 's3mount\[demo\]'"):
        server_python()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert server_python().startswith("/")
