"""Events and logs of a running mount, and that no secret stands in anything that it tells."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3mount.events import KINDS
from tests.conftest import own_bucket
from tests.fuse.test_steering import Steered, until
from tests.mounting import Mount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3  # not for the plain folder

PASSWORD = "a-password-of-a-proxy"


@pytest.fixture(scope="module")
def followed(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("followed")
    options = ["--log-format", "json", "--log-level", "debug", "--log-file", str(folder / "log")]
    for bucket in own_bucket(s3_server, versioned=False):
        mount = Mount(
            s3_server,
            bucket,
            folder,
            options=[*options, "--metrics", str(port)],
            environment={"HTTPS_PROXY": f"http://somebody:{PASSWORD}@127.0.0.1:9"},
        )
        mount.mount()
        try:
            yield Steered(mount, s3_server)
        finally:
            mount.close()


def events_of(steered: Steered, since: int = 0) -> list[dict[str, Any]]:
    told = steered.run("events", steered.path, "--since", since)
    return [json.loads(line) for line in told.splitlines()]


def a_conflict(steered: Steered, name: str) -> None:
    (steered.path / name).write_text("one")
    steered.run("wait", steered.path)
    steered.run("pause", steered.path)
    (steered.path / name).write_text("mine")
    steered.put(name, b"theirs")
    steered.run("resume", steered.path)
    steered.run("wait", steered.path)


def test_events_tell_what_happened_and_go_on(followed: Steered) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "s3mount", "events", str(followed.path), "--follow"],
        env=followed.mount.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        try:
            assert follower.stdout is not None
            first = json.loads(follower.stdout.readline())
            assert (first["seq"], first["kind"]) == (1, "mounted")
            a_conflict(followed, "fought-over")
            found = events_of(followed, since=1)
            followed_live = [json.loads(follower.stdout.readline()) for _ in found]
        finally:
            follower.kill()
    assert followed_live == found
    assert [each["seq"] for each in found] == list(range(2, 2 + len(found)))
    assert {each["kind"] for each in found} <= KINDS.keys()
    kinds = [each["kind"] for each in found]
    assert kinds.index("paused") < kinds.index("resumed") < kinds.index("conflict")
    conflict = next(each for each in found if each["kind"] == "conflict")
    assert (conflict["key"], conflict["outcome"]) == ("fought-over", "kept-both")
    uploaded = {each["key"]: each["size"] for each in found if each["kind"] == "uploaded"}
    assert (uploaded["fought-over"], uploaded[conflict["kept_as"]]) == (3, 4)


def test_the_log_is_lines_of_json_with_request_ids(followed: Steered) -> None:
    (followed.path / "logged").write_text("l")
    followed.run("wait", followed.path)

    def puts() -> list[dict[str, Any]]:
        told = followed.run("logs", followed.path, "-n", 1000)
        lines = [json.loads(line) for line in told.splitlines()]
        return [each for each in lines if each.get("kind") == "put" and each["key"] == "logged"]

    until(puts)
    put = puts()[0]
    assert (put["level"], put["status"], put["tries"]) == ("debug", 200, 1)
    assert put["request_id"]
    assert put["request_id"] in put["message"]
    assert len(followed.run("logs", followed.path, "-n", 2).splitlines()) == 2


def test_no_secret_is_told_anywhere(followed: Steered) -> None:
    a_conflict(followed, "told-of")
    path = str(followed.path)
    mount = followed.mount
    told = {
        command[0]: mount.command(*command)
        for command in (
            ("events", path),
            ("logs", path, "-n", "100000"),
            ("status", path, "--json"),
            ("metrics", path),
            ("config", "show", mount.bucket, path, "--all"),
            ("doctor", mount.bucket, "--endpoint-url", mount.endpoint_url, "--path-style"),
        )
    }
    texts = {name: done.stdout + done.stderr for name, done in told.items()}
    port = mount.options[mount.options.index("--metrics") + 1]
    for page in ("", "mounts", "metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=20) as answer:
            texts[f"page {page}"] = answer.read().decode()
    texts["output"] = mount.log
    texts["state"] = (next(Path(mount.state_dir).rglob("mount.json"))).read_text()
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    secrets = [mount.environment[name] for name in names if mount.environment.get(name)]
    secrets = [PASSWORD, *(each for each in secrets if len(each) >= 8)]
    for name, text in texts.items():
        assert text or name == "output", f"{name} tells nothing"
        for secret in secrets:
            assert secret not in text, f"{name} tells a secret"
