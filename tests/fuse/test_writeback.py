"""From the spool into S3: through kills, outages, refusals and changes of mind; nothing is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import counter, engines_of, kill_engines, parked_in, pending_of, status_of
from tests.fuse.outcomes import outcome
from tests.fuse.places import Place
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING, Answer, Fault, Relay, Request

pytestmark = pytest.mark.needs_s3
MIB = 1 << 20


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def behind(
    bucket: str, relay: Relay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> tuple[Mount, S3Contents]:
    """A mount that reaches the server through the relay, and the bucket without it."""
    mount = mount_factory(bucket, endpoint_url=relay.url)
    return mount, S3Contents(s3_server.boto3_client(), bucket)


def held(contents: S3Contents) -> dict[str, bytes]:
    """The whole bucket, without markers."""
    return {key: contents.read(key) for key in contents.listing() if not key.endswith("/")}


def test_what_was_closed_survives_a_kill(
    behind: tuple[Mount, S3Contents], relay: Relay, tmp_path: Path
) -> None:
    """New, changed, renamed, cut, removed, unsynced and synced: it uploads itself after the next start."""
    mount, contents = behind
    root = mount.path
    wanted = {f"kept{number}": b"kept %d" % number for number in range(6)}
    for name, content in wanted.items():
        (root / name).write_bytes(content)
    mount.wait()
    with relay.holding(*WRITING):
        for number in range(40):
            (root / f"new{number}").write_bytes(b"new %d" % number)
            wanted[f"new{number}"] = b"new %d" % number
        big = random.Random(5).randbytes(20 * MIB)
        (root / "big").write_bytes(big)
        wanted["big"] = big
        (root / "kept0").write_bytes(b"changed")
        wanted["kept0"] = b"changed"
        (root / "kept1").rename(root / "renamed")
        wanted["renamed"] = wanted.pop("kept1")
        os.truncate(root / "kept2", 3)
        wanted["kept2"] = b"kep"
        (root / "kept3").unlink()
        del wanted["kept3"]
        with (root / "kept4").open("ab") as file:
            file.write(b" more")
        wanted["kept4"] += b" more"
        (root / "new0").rename(root / "kept5")
        wanted["kept5"] = wanted.pop("new0")
        (root / "folder/empty").mkdir(parents=True)
        (root / "folder/file").write_bytes(b"in a folder")
        wanted["folder/file"] = b"in a folder"
        (root / "link").symlink_to("kept0")
        wanted["link"] = b"kept0"
        synced = os.open(root / "synced", os.O_CREAT | os.O_WRONLY)
        os.write(synced, b"synced, never closed")
        os.fsync(synced)
        wanted["synced"] = b"synced, never closed"
        mount.kill9()
        with contextlib.suppress(OSError):
            os.close(synced)
        assert {key for key in contents.listing() if key.startswith(("new", "big", "folder"))} == (
            set()
        )
    mount.mount()
    for name, content in wanted.items():
        if name != "link":
            assert (root / name).read_bytes() == content
    assert sorted(os.listdir(root / "folder")) == ["empty", "file"]
    wait_until(lambda: pending_of(mount)["changes"] == 0, "it uploads itself", timeout_s=60)
    assert held(contents) == wanted
    assert "folder/empty/" in contents.listing()


def test_kills_one_after_another(behind: tuple[Mount, S3Contents]) -> None:
    """Killed again and again, with uploads on their way: the last closed state arrives, once."""
    mount, contents = behind
    rng = random.Random(3)
    wanted: dict[str, bytes] = {}
    for turn in range(5):
        for number in range(15):
            name = f"file{rng.randrange(30)}"
            wanted[name] = b"%d.%d " % (turn, number) * rng.randrange(1, 5000)
            (mount.path / name).write_bytes(wanted[name])
        large = rng.randbytes(9 * MIB)
        (mount.path / "large").write_bytes(large)
        wanted["large"] = large
        time.sleep(rng.random() * 0.8)
        mount.kill9()
        mount.mount()
        for name, content in wanted.items():
            assert (mount.path / name).read_bytes() == content
    mount.wait()
    assert held(contents) == wanted


def test_large_file(own_place: Place) -> None:
    """100 MiB and a bit, in parts: seen whole, no unfinished upload stays."""
    assert isinstance(own_place.contents, S3Contents)
    rng = random.Random(9)
    digest = hashlib.md5()
    with (own_place.path / "large").open("wb", buffering=0) as file:
        for _ in range(100):
            piece = rng.randbytes(MIB)
            digest.update(piece)
            file.write(piece)
        file.write(b"and a bit")
        digest.update(b"and a bit")
    own_place.mount.wait(timeout_s=100)
    listed = own_place.contents.listing()["large"]
    assert listed.size == 100 * MIB + 9
    assert "-" in listed.etag
    assert hashlib.md5(own_place.contents.read("large")).hexdigest() == digest.hexdigest()
    uploads = own_place.contents.client.list_multipart_uploads(Bucket=own_place.contents.bucket)
    assert uploads.get("Uploads", []) == []
    own_place.mount.remount(fresh_cache=True, fresh_state=True)
    again = hashlib.md5()
    with (own_place.path / "large").open("rb") as file:
        while data := file.read(MIB):
            again.update(data)
    assert again.hexdigest() == digest.hexdigest()


def test_unmount_returns_when_all_is_in_s3(own_place: Place) -> None:
    """Written and unmounted at once."""
    assert isinstance(own_place.contents, S3Contents)
    wanted = {f"folder{n % 7}/file{n}": b"%d" % n * (n % 50) for n in range(200)}
    wanted["large"] = random.Random(1).randbytes(30 * MIB)
    for name, content in wanted.items():
        (own_place.path / name).parent.mkdir(exist_ok=True)
        (own_place.path / name).write_bytes(content)
    own_place.mount.unmount()
    assert held(own_place.contents) == wanted


def test_status_and_wait_tell_what_is_pending(
    behind: tuple[Mount, S3Contents], relay: Relay
) -> None:
    """Counted while it waits, readable meanwhile, nothing left after ``s3mount wait``."""
    mount, contents = behind
    assert pending_of(mount)["changes"] == 0
    with relay.holding(*WRITING):
        for number in range(5):
            (mount.path / f"file{number}").write_bytes(b"x" * 1000)
        assert status_of(mount)["phase"] == "serving"
        told = pending_of(mount)
        assert {change["key"] for change in told["list"]} >= {f"file{n}" for n in range(5)}
        assert told["changes"] in (5, 6)
        assert told["bytes"] == 5000
        impatient = mount.command("wait", str(mount.path), "--timeout", "1")
        assert impatient.returncode == 1
        assert "Traceback" not in impatient.stderr
        assert (mount.path / "file3").read_bytes() == b"x" * 1000
        assert contents.listing() == {}
    mount.wait()
    told = pending_of(mount)
    assert (told["changes"], told["bytes"], told["list"]) == (0, 0, [])
    assert sorted(contents.listing()) == [f"file{number}" for number in range(5)]


def test_wait_for_one_path(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """``s3mount wait MOUNTPOINT PATH`` returns when that file is there, whatever else is not."""
    mount, contents = behind

    def hold_others(request: Request) -> Fault | Answer | None:
        stuck = request.method == "PUT" and "stuck" in request.path
        return Answer(503, "SlowDown") if stuck else None

    relay.decide = hold_others
    (mount.path / "stuck").write_bytes(b"stuck")
    (mount.path / "wanted").write_bytes(b"wanted")
    done = mount.command("wait", str(mount.path), str(mount.path / "wanted"), "--timeout", "20")
    assert done.returncode == 0, done.stderr
    assert list(contents.listing()) == ["wanted"]
    relay.decide = lambda request: None
    mount.wait()
    assert sorted(contents.listing()) == ["stuck", "wanted"]


def test_server_down_and_up_again(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """Writing and reading back go on without it; when it is back, everything arrives."""
    mount, contents = behind
    (mount.path / "before").write_bytes(b"before")
    mount.wait()
    assert (mount.path / "before").read_bytes() == b"before"
    relay.stop()
    wanted = {"before": b"before"}
    for number in range(100):
        wanted[f"file{number}"] = b"%d" % number * 10
        (mount.path / f"file{number}").write_bytes(wanted[f"file{number}"])
    wanted["large"] = random.Random(2).randbytes(12 * MIB)
    (mount.path / "large").write_bytes(wanted["large"])
    (mount.path / "before").rename(mount.path / "after")
    wanted["after"] = wanted.pop("before")
    for name, content in wanted.items():
        if name != "after":
            assert (mount.path / name).read_bytes() == content
    assert pending_of(mount)["changes"] >= 101
    time.sleep(2)
    relay.start()
    mount.wait()
    assert held(contents) == wanted


def test_cold_read_while_the_server_is_down(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """It ends with an error in bounded time, and works again afterwards."""
    mount, contents = behind
    contents.put("file", b"content")
    (mount.path / "file").stat()
    relay.stop()
    assert outcome((mount.path / "file").read_bytes) in (
        "EIO",
        "ETIMEDOUT",
        "EHOSTUNREACH",
        "EAGAIN",
    )
    relay.start()
    assert (mount.path / "file").read_bytes() == b"content"


def test_killed_engine_is_not_noticed(behind: tuple[Mount, S3Contents]) -> None:
    """The process that talks to S3 is killed under load, again and again: a delay and nothing else."""
    mount, contents = behind
    wanted: dict[str, bytes] = {}
    errors: list[OSError] = []
    ended = threading.Event()

    def work() -> None:
        rng = random.Random(11)
        try:
            for number in range(400):
                content = rng.randbytes(rng.choice((100, 5000, 200_000)))
                (mount.path / f"file{number}").write_bytes(content)
                wanted[f"file{number}"] = content
                if number % 10 == 0:
                    assert (mount.path / f"file{number // 2}").read_bytes() == (
                        wanted[f"file{number // 2}"]
                    )
                if number % 100 == 50:
                    large = rng.randbytes(9 * MIB)
                    (mount.path / f"large{number}").write_bytes(large)
                    wanted[f"large{number}"] = large
                time.sleep(0.005)
        except OSError as error:
            errors.append(error)
        finally:
            ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    killed = 0
    while killed < 4 and not ended.wait(0.6):
        wait_until(lambda: bool(engines_of(mount)), "an engine runs")
        killed += kill_engines(mount)
    worker.join()
    assert errors == []
    assert killed >= 2
    mount.wait()
    assert held(contents) == wanted
    mount.remount(fresh_cache=True, fresh_state=True)
    for name, content in wanted.items():
        assert (mount.path / name).read_bytes() == content


def test_engine_killed_while_reading(own_place: Place) -> None:
    """A cold read goes on in the next engine."""
    assert isinstance(own_place.mount, Mount)
    content = random.Random(4).randbytes(40 * MIB)
    own_place.contents.put("large", content)
    with (own_place.path / "large").open("rb", buffering=0) as file:
        got = file.read(100_000)
        assert kill_engines(own_place.mount) >= 1
        while data := file.read(MIB):
            got += data
            if len(got) // MIB == 20:
                kill_engines(own_place.mount)
    assert got == content


def test_changed_while_it_uploads(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """A PUT is on its way while the file is written again: the last state is what stays."""
    mount, contents = behind
    for number in range(5):
        with relay.holding(*WRITING):
            (mount.path / "file").write_bytes(b"first %d" % number)
            relay.forget()
            wait_until(lambda: bool(relay.requests("PUT", path_part="file")), "a PUT is on its way")
            (mount.path / "file").write_bytes(b"second %d" % number)
        mount.wait()
        assert contents.read("file") == b"second %d" % number
    assert list(contents.listing()) == ["file"]


def test_removed_and_renamed_while_it_uploads(
    behind: tuple[Mount, S3Contents], relay: Relay
) -> None:
    """The upload that was under way leaves nothing behind under the old name."""
    mount, contents = behind
    with relay.holding(*WRITING):
        (mount.path / "removed").write_bytes(b"removed")
        (mount.path / "renamed").write_bytes(b"renamed")
        wait_until(lambda: len(relay.requests("PUT")) >= 2, "both are on their way")
        (mount.path / "removed").unlink()
        (mount.path / "renamed").rename(mount.path / "new name")
    mount.wait()
    assert held(contents) == {"new name": b"renamed"}


def test_large_file_changed_while_it_uploads(behind: tuple[Mount, S3Contents]) -> None:
    """Parts that were sent already and are written again are sent again."""
    mount, contents = behind
    content = bytearray(random.Random(6).randbytes(30 * MIB))
    with (mount.path / "large").open("wb", buffering=0) as file:
        file.write(content)
        time.sleep(1.0)
        for offset in (0, 8 * MIB + 5, 29 * MIB):
            os.pwrite(file.fileno(), b"rewritten", offset)
            content[offset : offset + 9] = b"rewritten"
    time.sleep(0.2)
    with (mount.path / "large").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"again", 16 * MIB)
        content[16 * MIB : 16 * MIB + 5] = b"again"
        os.ftruncate(file.fileno(), 27 * MIB + 3)
    mount.wait()
    assert contents.read("large") == content[: 27 * MIB + 3]
    uploads = contents.client.list_multipart_uploads(Bucket=contents.bucket)
    assert uploads.get("Uploads", []) == []


def test_looking_at_a_file_sends_nothing(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """Opened to read, opened to write and closed, touched by stat: no PUT, no DELETE, no COPY."""
    mount, contents = behind
    (mount.path / "file").write_bytes(b"content")
    mount.wait()
    before = contents.listing()
    relay.forget()
    (mount.path / "file").read_bytes()
    (mount.path / "file").open("r+b").close()
    (mount.path / "file").open("ab").close()
    os.listdir(mount.path)
    mount.wait()
    assert relay.requests("PUT") == relay.requests("DELETE") == relay.requests("POST") == []
    assert contents.listing() == before


def _deny(action: str) -> Callable[[Request], Answer | None]:
    def decide(request: Request) -> Answer | None:
        about_file = request.path.count("/") > 1 and "list-type" not in request.query
        return Answer(403, "AccessDenied") if request.method == action and about_file else None

    return decide


def test_refused_reads_are_eacces(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """403 while reading: the errno a person expects, a line in the log with key and request id."""
    mount, contents = behind
    contents.put("secret", b"x" * 100_000)
    assert (mount.path / "secret").stat().st_size == 100_000
    relay.decide = _deny("GET")
    assert outcome((mount.path / "secret").read_bytes) == "EACCES"
    line = next(line for line in mount.log.splitlines() if "secret" in line and "403" in line)
    assert "relay" in line
    relay.decide = lambda request: None
    assert (mount.path / "secret").read_bytes() == b"x" * 100_000


def test_refused_writes_stay_in_the_spool(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """403 while uploading: kept, readable, shown with its reason; sent when a person asks again."""
    mount, contents = behind
    relay.decide = _deny("PUT")
    (mount.path / "file").write_bytes(b"precious")
    wait_until(lambda: "file" in {change["key"] for change in parked_in(mount)}, "it is parked")
    parked = next(change for change in parked_in(mount) if change["key"] == "file")
    assert "403" in parked["error"] or "denied" in parked["error"].lower()
    assert mount.command("wait", str(mount.path), "--timeout", "3").returncode == 1
    assert (mount.path / "file").read_bytes() == b"precious"
    mount.kill9()
    mount.mount()
    assert (mount.path / "file").read_bytes() == b"precious"
    relay.decide = lambda request: None
    mount.wait()
    assert held(contents) == {"file": b"precious"}


def test_policy_of_a_real_server(ceph: S3Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ceph enforces a policy that denies reading below one prefix and writing below another."""
    bucket = ceph.make_bucket()
    contents = S3Contents(ceph.boto3_client(), bucket)
    contents.put("unreadable/file", b"content")
    contents.put("readable/file", b"content")
    denied = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": [action],
                "Resource": [f"arn:aws:s3:::{bucket}/{folder}/*"],
            }
            for action, folder in (("s3:GetObject", "unreadable"), ("s3:PutObject", "unwritable"))
        ],
    }
    contents.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(denied))
    mount = Mount(ceph, bucket, tmp_path_factory.mktemp("policy"))
    try:
        mount.mount()
        assert (mount.path / "readable/file").read_bytes() == b"content"
        assert outcome((mount.path / "unreadable/file").read_bytes) == "EACCES"
        (mount.path / "unwritable").mkdir()
        (mount.path / "unwritable/file").write_bytes(b"kept")
        wait_until(lambda: bool(parked_in(mount)), "it is parked")
        assert (mount.path / "unwritable/file").read_bytes() == b"kept"
        contents.client.delete_bucket_policy(Bucket=bucket)
        mount.unmount()
        assert contents.read("unwritable/file") == b"kept"
    finally:
        mount.close()
    assert "Traceback" not in mount.log


def test_throttling_is_a_delay(behind: tuple[Mount, S3Contents], relay: Relay) -> None:
    """503 SlowDown and 500 for a quarter of all requests: everything arrives and reads back."""
    mount, contents = behind
    rng = random.Random(8)

    def now_and_then(request: Request) -> Answer | None:
        chance = rng.random()
        if chance < 0.2:
            return Answer(503, "SlowDown")
        return Answer(500, "InternalError") if chance < 0.25 else None

    relay.decide = now_and_then
    wanted = {f"file{number}": rng.randbytes(3000) for number in range(60)}
    wanted["large"] = rng.randbytes(20 * MIB)
    for name, content in wanted.items():
        (mount.path / name).write_bytes(content)
    mount.wait()
    assert held(contents) == wanted
    mount.remount(fresh_cache=True, fresh_state=True)
    for name, content in wanted.items():
        assert (mount.path / name).read_bytes() == content
    assert counter(mount, "retries") > 0


def test_full_spool(
    bucket: str, relay: Relay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Writers are slowed, then told ENOSPC by write or close; what was accepted arrives later."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    options = ("--spool-size", "24M", "--spool-wait", "2s")
    mount = mount_factory(bucket, *options, endpoint_url=relay.url)
    accepted: dict[str, bytes] = {}
    refusal = ""
    relay.hold(*WRITING)
    for number in range(10):
        content = random.Random(number).randbytes(6 * MIB)
        refusal = outcome(lambda n=number, c=content: (mount.path / f"f{n}").write_bytes(c))  # type: ignore[misc]
        if refusal != "done":
            break
        accepted[f"f{number}"] = content
    assert refusal == "ENOSPC"
    assert 2 <= len(accepted) <= 5
    (mount.path / f"f{len(accepted)}").unlink()
    relay.release()
    mount.wait()
    assert held(contents) == accepted
    (mount.path / "later").write_bytes(b"x" * 6 * MIB)
    mount.wait()
    assert contents.read("later") == b"x" * 6 * MIB


def test_larger_than_the_spool(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Files that together exceed the spool's size pass through it, since what is sent makes room."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    mount = mount_factory(bucket, "--spool-size", "24M")
    wanted = {f"f{n}": random.Random(n).randbytes(6 * MIB) for n in range(10)}
    for name, content in wanted.items():
        (mount.path / name).write_bytes(content)
    mount.wait()
    assert held(contents) == wanted
