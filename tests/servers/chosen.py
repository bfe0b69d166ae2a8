"""The server that a run is to use: one that runs already, as variables say, or one started for it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from tests.servers import S3Server
from tests.servers.ceph import ACCESS_KEY, SECRET_KEY, running_ceph
from tests.servers.localstack import running_localstack


def given(name: str) -> S3Server | None:
    """The server of that name (``localstack``, ``ceph``, ``given``) that the variables of tests/conftest.py tell.

    Raises ValueError when its keys are no keys.
    """
    variable = f"S3MOUNT_TEST_{'S3' if name == 'given' else name.upper()}"
    url = os.environ.get(f"{variable}_URL", "")
    if not url:
        return None
    usual = {"localstack": "test:test", "ceph": f"{ACCESS_KEY}:{SECRET_KEY}"}.get(name, "")
    access_key, _, secret_key = os.environ.get(f"{variable}_KEYS", usual).rpartition(":")
    if not access_key:
        raise ValueError(f"{variable}_KEYS must be KEY:SECRET")
    return S3Server(
        name=name,
        endpoint_url=url,
        https_url=os.environ.get(f"{variable}_HTTPS_URL"),
        ca_bundle=os.environ.get(f"{variable}_CA"),
        access_key=access_key,
        secret_key=secret_key,
        region=os.environ.get(f"{variable}_REGION", "us-east-1"),
        lasting=True,
    )


@contextlib.contextmanager
def chosen(name: str, folder: Path) -> Iterator[S3Server]:
    """That server, started below ``folder`` where no variable tells of one, while the block lasts."""
    server = given(name)
    if server is not None:
        yield server
        return
    folder.mkdir(exist_ok=True)
    start = {"localstack": running_localstack, "ceph": running_ceph}
    if name not in start:
        raise ValueError("S3MOUNT_TEST_S3_URL names no server")
    with start[name](folder) as running:
        yield running


@contextlib.contextmanager
def shared(name: str, folder: Path) -> Iterator[S3Server]:
    """That server, one for all the processes that ask with the same ``folder``.

    The first that asks starts it, and ends it when the others have let go of it.
    """
    told = folder / f"{name}.json"
    with contextlib.ExitStack() as stack:
        users = stack.enter_context(open(folder / f"{name}.users", "a", encoding="utf-8"))
        with open(folder / f"{name}.starting", "a", encoding="utf-8") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                server = S3Server(**json.loads(told.read_text("utf-8")))
            except FileNotFoundError:
                server = stack.enter_context(chosen(name, folder / name))
                told.write_text(json.dumps(dataclasses.asdict(server)), "utf-8")
                stack.callback(told.unlink)
                stack.callback(fcntl.flock, users, fcntl.LOCK_EX)
        yield server
