"""``s3mount doctor`` names the fault of broken set-ups, one after another, and finds none where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.bulk.places import COMMAND_TIMEOUT_S, Places
from tests.servers import S3Server
from tests.servers.counting import WRITING, Answer, Relay
from tests.servers.habits import Habit, HabitRelay

pytestmark = pytest.mark.each_server

NOBODY = "http://127.0.0.1:9"
SECRET = "a-password-of-a-proxy"


def examined(
    places: Places,
    *words: str,
    endpoint_url: str | None = None,
    environment: Mapping[str, str | None] = {},
    status: int = 1,
) -> dict[str, dict[str, str]]:
    """What the doctor says, by check."""
    variables = {**places.environment(), **environment}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "s3mount", "doctor", "--json", "--path-style"),
            *("--endpoint-url", endpoint_url or places.server.endpoint_url, *words),
        ],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=places.folder,
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.stderr == b""
    assert done.returncode == status, done.stdout.decode()
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["check"]: each for each in found}


def faults(found: dict[str, dict[str, str]]) -> list[str]:
    """The checks that failed; each tells what to do."""
    failed = [each for each in found.values() if each["level"] == "fault"]
    assert all(each["advice"] for each in failed)
    return [each["check"] for each in failed]


def test_a_sound_set_up_has_no_fault(places: Places) -> None:
    places.put("a/there")
    (places.folder / "empty").mkdir()
    found = examined(places, f"{places.bucket}/a", "empty", status=0)
    assert faults(found) == []
    assert {"kernel", "fuse device", "state disk", "mount point", "clock", "versioning"} <= set(
        found
    )
    assert found["right to delete"]["level"] == found["right to read"]["level"] == "ok"
    assert places.keys() == ["a/there"]


def test_read_only_writes_nothing(places: Places) -> None:
    places.put("there")
    with Relay(places.server.endpoint_url) as relay:
        relay.decide = lambda request: (
            Answer(403, "AccessDenied") if request.method in WRITING else None
        )
        found = examined(places, places.bucket, "--read-only", endpoint_url=relay.url, status=0)
    assert "right to write" not in found
    assert found["right to read"]["level"] == "ok"


def test_text_has_a_line_for_each_check_and_one_for_what_to_do(places: Places) -> None:
    lines = places.run("doctor", "no-such-bucket-anywhere", status=1).stdout.decode().splitlines()
    [at] = [number for number, line in enumerate(lines) if line.startswith("FAULT    bucket")]
    assert lines[at + 1].strip().startswith("-> ")


def test_no_bucket(places: Places) -> None:
    assert faults(examined(places, "no-such-bucket-anywhere")) == ["bucket"]


def test_no_credentials(places: Places) -> None:
    none = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
    home = {"HOME": str(places.folder), "AWS_EC2_METADATA_DISABLED": "true"}
    assert faults(examined(places, places.bucket, environment={**none, **home})) == ["credentials"]


def test_a_wrong_secret(ceph: S3Server, tmp_path: Path) -> None:
    places = Places(ceph, "any", tmp_path)
    wrong = {"AWS_SECRET_ACCESS_KEY": "x" * 40}
    assert faults(examined(places, places.bucket, environment=wrong)) == ["credentials"]


def test_nobody_at_the_endpoint(places: Places) -> None:
    assert faults(examined(places, places.bucket, endpoint_url=NOBODY)) == ["endpoint"]


@pytest.fixture
def web_page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>Welcome</title>")

        do_HEAD = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_endpoint_that_is_a_web_page(places: Places, web_page: str) -> None:
    found = examined(places, places.bucket, endpoint_url=web_page)
    assert faults(found) == ["endpoint"]
    assert "proxy" in found["endpoint"]["advice"]


def test_a_proxy_that_is_not_there_whose_password_stays_secret(places: Places) -> None:
    proxy = {"HTTP_PROXY": f"http://user:{SECRET}@127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    found = examined(
        places, places.bucket, endpoint_url="http://s3.example.test", environment=proxy
    )
    assert found["proxy"]["found"] == "127.0.0.1:9"
    assert faults(found) == ["endpoint"]
    assert SECRET not in json.dumps(found)


def test_keys_that_may_not_write(places: Places) -> None:
    with Relay(places.server.endpoint_url) as relay:
        relay.decide = lambda request: (
            Answer(403, "AccessDenied") if request.method in WRITING else None
        )
        found = examined(places, places.bucket, endpoint_url=relay.url)
    assert faults(found) == ["right to write"]
    assert "s3:PutObject" in found["right to write"]["advice"]


def test_keys_that_may_not_delete(localstack: S3Server, tmp_path: Path) -> None:
    places = Places(localstack, localstack.make_bucket(), tmp_path)
    with HabitRelay(localstack.endpoint_url, [Habit.KEEPS_ALL]) as relay:
        found = examined(places, places.bucket, endpoint_url=relay.url)
    assert faults(found) == ["right to delete"]


def test_a_store_without_conditional_writes(localstack: S3Server, tmp_path: Path) -> None:
    places = Places(localstack, localstack.make_bucket(), tmp_path)
    with HabitRelay(localstack.endpoint_url, [Habit.NO_IF_MATCH]) as relay:
        found = examined(places, places.bucket, endpoint_url=relay.url, status=0)
    assert found["conditional writes"]["level"] == "warning"


def test_a_certificate_that_is_not_trusted(ceph: S3Server, tmp_path: Path) -> None:
    if not ceph.https_url:
        pytest.skip("this server has no https address")
    places = Places(ceph, "any", tmp_path)
    found = examined(
        places, places.bucket, endpoint_url=ceph.https_url, environment={"AWS_CA_BUNDLE": None}
    )
    assert faults(found) == ["TLS"]


def test_a_state_folder_that_cannot_be_written(places: Places) -> None:
    (places.folder / "file").write_bytes(b"")
    found = examined(places, places.bucket, "--state-dir", "file/state")
    assert faults(found) == ["state disk"]
    assert "--state-dir" in found["state disk"]["advice"]


def test_mount_points_that_cannot_be_used(places: Places) -> None:
    (places.folder / "file").write_bytes(b"")
    for name in ("none", "file", "."):
        assert faults(examined(places, places.bucket, name)) == ["mount point"]
