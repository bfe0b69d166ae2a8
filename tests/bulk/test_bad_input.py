"""Ten ways in which a transfer goes wrong: one clear line, its exit status, and nothing half under a final name."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.bulk.places import Places
from tests.bulk.web import Web
from tests.faults.disks import small_disk
from tests.fuse.bucket_contents import wait_until
from tests.servers.counting import Relay

MIB = 1 << 20
DATA = os.urandom(12 * MIB)
KEY = bytes(range(32))


class Scene:
    """A bucket with ``there`` in it, a folder with a file, and what a case adds."""

    def __init__(self, places: Places, stack: ExitStack) -> None:
        self.places = places
        self.stack = stack
        self.environment: dict[str, str] = {}
        self.endpoint_url: str | None = None
        self.to = places.folder / "to"
        self.to.mkdir()
        (places.folder / "file").write_bytes(DATA)
        places.put("there", body=DATA)
        self.before = places.keys()

    def web(self) -> Web:
        return self.stack.enter_context(Web(DATA))


def unreachable(scene: Scene) -> list[str]:
    scene.endpoint_url = "http://127.0.0.1:1"
    return ["cp", "file", "{b}/x", "--timeouts", "tries=2"]


def no_ranges(scene: Scene) -> list[str]:
    web = scene.web()
    web.serves_ranges = False
    web.cuts = 100
    return ["cp", web.url, "to/x"]


def source_changes(scene: Scene) -> list[str]:
    web = scene.web()
    count = iter(range(1000))

    def change(start: int) -> None:
        web.etag = f'"{next(count)}"'

    web.on_range = change  # type: ignore[method-assign]
    return ["cp", web.url, "{b}/x", "--part-size", "5M"]


def key_too_long(scene: Scene) -> list[str]:
    return ["cp", "file", "{b}/" + "k" * 1025]


def wrong_key(scene: Scene) -> list[str]:
    (scene.places.folder / "key").write_bytes(KEY)
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": KEY[::-1]}
    scene.places.put("there", body=DATA, **key)
    return ["cp", "{b}/there", "to/x", "--sse-c-key-file", "key"]


def no_permission(scene: Scene) -> list[str]:
    scene.environment["AWS_SECRET_ACCESS_KEY"] = "another"
    return ["cp", "file", "{b}/x"]


def disk_full(scene: Scene) -> list[str]:
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    scene.stack.enter_context(small_disk(scene.places.folder / "small", 4))
    scene.to = scene.places.folder / "small"
    return ["cp", "{b}/there", "small/x"]


def two_uploads(scene: Scene) -> list[str]:
    place = {"Bucket": scene.places.bucket, "Key": "x"}
    for _ in range(2):
        upload = scene.places.client.create_multipart_upload(**place)["UploadId"]
        scene.places.client.upload_part(
            **place, UploadId=upload, PartNumber=1, Body=DATA[: 6 * MIB]
        )
    return ["upload", "file", "{b}/x"]


def name_too_long(scene: Scene) -> list[str]:
    scene.places.put("n" * 300)
    scene.before = scene.places.keys()
    return ["cp", "{b}/" + "n" * 300, "to/"]


@pytest.fixture
def scene(places: Places) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(places, stack)


def run(scene: Scene, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        scene.places.argv(*words, endpoint_url=scene.endpoint_url),
        env=scene.places.environment() | scene.environment,
        cwd=scene.places.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nothing_half(scene: Scene) -> None:
    """What there is was there before, or is hidden as unfinished."""
    assert scene.places.keys() == scene.before
    visible = [path.name for path in scene.to.iterdir() if not path.name.startswith(".")]
    assert visible == []


@pytest.mark.parametrize(
    ("prepare", "status", "said"),
    [
        (unreachable, 1, "cannot connect to 127.0.0.1:1"),
        (no_ranges, 5, "cannot be read"),
        (source_changes, 1, "was replaced"),
        (key_too_long, 7, "S3 takes 1024"),
        (wrong_key, 10, "encrypted with another key than was given"),
        (no_permission, 14, "check the secret access key"),
        (disk_full, 1, "No space left on device"),
        (two_uploads, 13, "has 2 unfinished uploads: --force drops them"),
        (name_too_long, 6, "is longer than the 255 bytes"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_one_clear_line(
    scene: Scene, prepare: Callable[[Scene], list[str]], status: int, said: str
) -> None:
    words = prepare(scene)
    process = run(scene, words)
    _, told = process.communicate(timeout=90)
    assert process.returncode == status, told
    lines = told.splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith("s3mount: ")
    assert said in lines[0]
    nothing_half(scene)


@pytest.mark.parametrize("words", [("cp", "file", "{b}/x"), ("cp", "{b}/there", "to/x")])
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_ctrl_c(scene: Scene, words: tuple[str, ...]) -> None:
    method = "PUT" if words[1] == "file" else "GET"
    with Relay(scene.places.server.endpoint_url) as relay, relay.holding(method):
        scene.endpoint_url = relay.url
        process = run(scene, list(words))
        wait_until(lambda: bool(relay.requests(method)), "it works", timeout_s=60)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip() == "s3mount: interrupted"
    nothing_half(scene)
