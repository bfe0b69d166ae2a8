"""Credentials that expire and names that are not found, for a while: what was written meanwhile arrives."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Behind
from tests.faults.load import bodies, held, make, shown
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import parked_in, pending_of
from tests.fuse.outcomes import outcome
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Answer, Request
from tests.servers.faulty import FaultyRelay

pytestmark = pytest.mark.each_server

HOST = "s3.names.test"
RETRY_S = 5.0
"""A change that is refused waits for longer than that until its next try."""
LIFE_S = 3600
"""Long enough that boto3 does not renew them ahead of time: a refusal is what tells."""


@pytest.fixture(params=[400, 403])
def expired(request: pytest.FixtureRequest) -> Answer:
    """How stores say it: AWS with 400, others with 403."""
    return Answer(request.param, "ExpiredToken")


def about_bodies(request: Request) -> bool:
    """Not what the mount asks about the bucket."""
    return request.path.strip("/").count("/") > 0


def test_a_token_that_is_accepted_again(
    behind: Behind, relay: FaultyRelay, expired: Answer
) -> None:
    """Refused long enough for several tries, shown with the reason, then taken: without a person's help."""
    mount, contents = behind
    os.listdir(mount.path)

    def refuse(request: Request) -> Answer | None:
        # What 403 means to HEAD cannot be told apart from a policy's refusal.
        is_unclear = request.method == "HEAD" and expired.status == 403
        return expired if about_bodies(request) and not is_unclear else None

    relay.decide = refuse
    wanted = {name: body for name, body in bodies(seed=4).items() if "large" not in name}
    for name, body in wanted.items():
        (mount.path / name).write_bytes(body)
    wait_until(
        lambda: any(each["attempts"] >= 4 for each in pending_of(mount)["list"]), "tried four times"
    )
    told = pending_of(mount)
    assert told["changes"] >= len(wanted)
    assert any("expired" in (each["error"] or "") for each in told["list"])
    assert told["states"]["parked"] == 0
    assert shown(mount.path) == wanted
    relay.decide = lambda request: None
    wait_until(lambda: pending_of(mount)["changes"] == 0, "everything is sent", timeout_s=60)
    assert held(contents) == wanted


class Keys:
    """Credentials of a mount that can be exchanged while it runs; the relay takes the present ones only."""

    def __init__(self, folder: Path, relay: FaultyRelay, expired: Answer) -> None:
        self._credentials = folder / "credentials"
        self._told = folder / "told.json"
        self._valid = ""
        relay.decide = lambda request: None if request.access_key == self._valid else expired

    def give(self, key: str) -> None:
        """From now on ``key`` is the one."""
        lines = ["[default]", f"aws_access_key_id = {key}", "aws_secret_access_key = test"]
        self._replace(self._credentials, "\n".join(lines) + "\n")
        now = datetime.datetime.now(datetime.UTC)
        told = {
            "Version": 1,
            "AccessKeyId": key,
            "SecretAccessKey": "test",
            "SessionToken": "session",
            "Expiration": (now + datetime.timedelta(seconds=LIFE_S)).isoformat(),
        }
        self._replace(self._told, json.dumps(told))
        self._valid = key

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(path)

    def environment(self, how: str) -> dict[str, str]:
        """The variables by which boto3 finds them in a file, or by a process."""
        if how == "file":
            return {"AWS_SHARED_CREDENTIALS_FILE": str(self._credentials)}
        config = self._told.with_name("config")
        show = f"import pathlib; print(pathlib.Path({str(self._told)!r}).read_text())"
        script = self._told.with_name("show.py")
        script.write_text(show)
        config.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
        return {"AWS_CONFIG_FILE": str(config)}


@pytest.mark.parametrize("how", ["file", "process"])
def test_other_credentials_are_found(
    localstack: S3Server, tmp_path: Path, expired: Answer, how: str
) -> None:
    """The keys in the credentials file, or those that credential_process tells, are exchanged under way."""
    bucket = localstack.make_bucket()
    with FaultyRelay(localstack.endpoint_url) as relay:
        keys = Keys(tmp_path, relay, expired)
        keys.give("key-one")
        mount = Mount(localstack, bucket, tmp_path, endpoint_url=relay.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del mount.environment[name]
        mount.environment |= keys.environment(how)
        try:
            mount.mount()
            wanted = make(mount.path, seed=5)
            mount.wait()
            relay.forget()
            keys.give("key-two")
            (mount.path / "later").write_bytes(b"later")
            wanted["later"] = b"later"
            mount.wait()
            assert held(S3Contents(localstack.boto3_client(), bucket)) == wanted
            # Whichever request came first was refused: the upload, or the look at whether the name is free.
            assert {each.access_key for each in relay.faulted()} == {"key-one"}
            assert relay.requests("PUT", path_part="later")[-1].access_key == "key-two"
            mount.unmount()
        finally:
            mount.close()
        assert "Traceback" not in mount.log
    localstack.remove_bucket(bucket)


def test_keys_that_were_exchanged_count_for_the_next_try(
    localstack: S3Server, tmp_path: Path
) -> None:
    """Exchanged again and again, each time just after boto3 was asked, and refused as by a policy."""
    bucket = localstack.make_bucket()
    with FaultyRelay(localstack.endpoint_url) as relay:
        keys = Keys(tmp_path, relay, Answer(403, "AccessDenied"))
        keys.give("key-0")
        mount = Mount(localstack, bucket, tmp_path, endpoint_url=relay.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del mount.environment[name]
        mount.environment |= keys.environment("file")
        try:
            mount.mount()
            for number in range(1, 4):
                keys.give(f"key-{number}")
                (mount.path / f"file-{number}").write_bytes(b"x")
                mount.wait()
                last = relay.requests("PUT", path_part=f"file-{number}")[-1]
                assert last.access_key == f"key-{number}"
            mount.unmount()
        finally:
            mount.close()
    localstack.remove_bucket(bucket)


def test_retry_asks_for_credentials_anew(localstack: S3Server, tmp_path: Path) -> None:
    """No file of AWS's changes when a process tells others, and a plain 403 tells nothing: retry asks it."""
    bucket = localstack.make_bucket()
    with FaultyRelay(localstack.endpoint_url) as relay:
        keys = Keys(tmp_path, relay, Answer(403, "AccessDenied"))
        refuse = relay.decide
        relay.decide = lambda request: refuse(request) if request.method == "PUT" else None
        keys.give("key-0")
        mount = Mount(localstack, bucket, tmp_path, endpoint_url=relay.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del mount.environment[name]
        mount.environment |= keys.environment("process")
        try:
            mount.mount()
            for number in range(1, 4):
                keys.give(f"key-{number}")
                (mount.path / f"file-{number}").write_bytes(b"x")
                wait_until(lambda: parked_in(mount) != [], "it is refused")
                assert mount.command("retry", str(mount.path)).returncode == 0
                began_s = time.monotonic()
                mount.wait()
                assert time.monotonic() - began_s < RETRY_S
                last = relay.requests("PUT", path_part=f"file-{number}")[-1]
                assert last.access_key == f"key-{number}"
            mount.unmount()
        finally:
            mount.close()
    localstack.remove_bucket(bucket)


# Ceph takes the first part of a host name that it does not know for a bucket's.
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_name_that_is_not_found_for_a_while(
    bucket: str,
    relay: FaultyRelay,
    mount_factory: Callable[..., Mount],
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    """DNS goes away and comes back: local work goes on, cold reads fail in time, everything arrives."""
    name_is_known = tmp_path / "name"
    name_is_known.touch()
    contents = S3Contents(s3_server.boto3_client(), bucket)
    contents.put("cold", b"cold")
    mount = mount_factory(
        bucket,
        endpoint_url=relay.url.replace("127.0.0.1", HOST),
        environment={
            "PYTHONPATH": f"{Path(__file__).parent / 'resolver'}:{Path(__file__).parents[2]}",
            "TEST_HOST": HOST,
            "TEST_HOST_FILE": str(name_is_known),
        },
    )
    (mount.path / "cold").stat()
    name_is_known.unlink()
    relay.stop()
    relay.start()
    wanted = {name: body for name, body in bodies(seed=6).items() if "large" not in name}
    for name, body in wanted.items():
        (mount.path / name).write_bytes(body)
    assert outcome((mount.path / "cold").read_bytes) in ("EIO", "ETIMEDOUT")
    wait_until(
        lambda: any("name resolution" in (e["error"] or "") for e in pending_of(mount)["list"]),
        "the reason is told",
        timeout_s=60,
    )
    assert {name: (mount.path / name).read_bytes() for name in wanted} == wanted
    name_is_known.touch()
    mount.wait()
    assert (mount.path / "cold").read_bytes() == b"cold"
    assert held(contents) == wanted | {"cold": b"cold"}
