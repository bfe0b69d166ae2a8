"""An S3 server on this machine, for a first try and for tests: LocalStack's S3 provider.

It runs in a process of its own and, since it pins other versions of boto3 than s3mount wants, usually
in a virtual environment of its own. It keeps its data in one folder and forgets it at the end. It checks
no secrets and enforces no policies, so it is for trying things out only.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from s3mount.demo.server_process import ServerProcess
from s3mount.errors import S3MountError, UsageError

HOST = "127.0.0.1"
REGION = "us-east-1"
PYTHON_VARIABLE = "S3MOUNT_DEMO_PYTHON"
LAUNCHER = Path(__file__).with_name("loopback.py")
PROJECT_PYTHON = Path(__file__).parents[2] / ".venv-demo" / "bin" / "python"

START_TIMEOUT_S = 90.0
"""Ready after 1.5 to 3 s on an idle machine of 2 cores, 10 s while it first writes its bytecode."""
LISTENING = "listening"
"""The line that loopback.py prints when the port is the server's own."""
START_TRIES = 3
"""Another process may take the port between the look for a free one and the server's bind."""
POLL_S = 0.05


def server_python() -> str:
    """The interpreter that has the embedded server installed.

    ``$S3MOUNT_DEMO_PYTHON``, else the source tree's ``.venv-demo``, else the running one. Raises
    UsageError when the variable names no program, S3MountError when the server is nowhere.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise UsageError(f"{PYTHON_VARIABLE}={named}: no program there")
        return named
    if os.access(PROJECT_PYTHON, os.X_OK):
        return str(PROJECT_PYTHON)
    if importlib.util.find_spec("localstack") is not None:
        return sys.executable
    raise S3MountError(
        "the embedded S3 server is not installed: run `pip install 's3mount[demo]'`"
        " (in a source tree: `make setup`)"
    )


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class DemoServer:
    """The embedded server while the ``with`` block lasts; it also ends when this process is killed.

    ``endpoint_url`` is valid inside the block. Buckets are addressed by path. ``data_dir`` is where the
    server's folder is made (the system's temporary folder by default). Blocks while it starts, up to
    ``start_timeout_s``; S3MountError says why it could not.
    """

    access_key = "test"
    secret_key = "test"
    region = REGION

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        port: int | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._data_dir = data_dir
        self._wanted_port = port
        self._start_timeout_s = start_timeout_s
        self._folder: Path | None = None
        self._process: ServerProcess | None = None
        self.port = 0

    @property
    def endpoint_url(self) -> str:
        """Where it answers, as ``http://host:port``."""
        return f"http://{HOST}:{self.port}"

    def is_running(self) -> bool:
        """Has it been started, and is it still there?"""
        return self._process is not None and self._process.is_running()

    def environment(self) -> dict[str, str]:
        """The AWS_* variables that give its credentials and region to boto3 and to commands."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        """Start it and return when it answers."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and remove its data."""
        self.stop()

    def start(self) -> None:
        """Start it and return when it answers. Raises S3MountError; nothing is left running then."""
        if self._process is not None:
            raise S3MountError(f"the embedded S3 server runs already, at {self.endpoint_url}")
        python = server_python()
        deadline = time.monotonic() + self._start_timeout_s
        try:
            for tries_left in reversed(range(START_TRIES)):
                self._launch(python)
                if self._answers_before(deadline):
                    return
                told = self._last_words()
                taken = _listening(self.port)
                self.stop()
                if not (taken and tries_left and self._wanted_port is None):
                    raise S3MountError(f"the embedded S3 server did not start: {told}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, return when it is gone, and remove its data; repeatable."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _launch(self, python: str) -> None:
        self.port = self._wanted_port or free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="s3mount-demo-", dir=self._data_dir))
        scratch = self._folder / "tmp"
        scratch.mkdir()
        # What the user's shell says about AWS or LocalStack is meant for something else.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "LOCALSTACK_", "PYTHON"))
        }
        environment |= {
            "SERVICES": "s3",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_LISTEN": f"{HOST}:{self.port}",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
            "DEBUG": "0",
            "LS_LOG": "error",
            "LOCALSTACK_VOLUME_DIR": str(self._folder),
            "FILESYSTEM_ROOT": str(self._folder),
            "TMPDIR": str(scratch),
        }
        self._process = ServerProcess(
            [python, "-P", str(LAUNCHER)],
            environment=environment,
            log_path=self._folder / "server.log",
            remove=[self._folder],
        )

    def _answers_before(self, deadline: float) -> bool:
        """Wait until it serves S3; False when it ended or the deadline passed."""
        while self.is_running() and time.monotonic() < deadline:
            if self._answers():
                return self.is_running()
            time.sleep(POLL_S)
        return False

    def _answers(self) -> bool:
        # Its own word comes first: on a port that is taken, somebody else would answer.
        if self._process is None or LISTENING not in self._process.log_tail().splitlines():
            return False
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/_localstack/health")
            answer = connection.getresponse()
            return answer.status == 200 and b'"s3": "running"' in answer.read()
        return False

    def _last_words(self) -> str:
        if self._process is None:
            return "it was not started"
        lines = self._process.log_tail().splitlines()
        last = lines[-1].strip() if lines else "not a word from it"
        if self._process.is_running():
            return f"no answer within {self._start_timeout_s:.0f} s; last in its log: {last}"
        return last


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
