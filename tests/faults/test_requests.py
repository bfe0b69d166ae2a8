"""Counted requests: what must not cost more than it has to."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable

import pytest

from s3mount.vfs.namespace.directory_times import TOUCH_PERIOD_S
from tests.faults.conftest import Behind
from tests.faults.load import held
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import counter, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Request
from tests.servers.faulty import FaultyRelay

FILES = 1000


def of_the_test(requests: list[Request]) -> list[Request]:
    """Without what the mount asks for its own sake, once."""
    return [request for request in requests if "/.s3mount" not in request.path]


def about(name: str, relay: FaultyRelay, *, but: tuple[str, ...] = ()) -> list[Request]:
    """The requests for keys that contain ``name``, without those of the methods ``but``."""
    return [each for each in relay.requests(path_part=name) if each.method not in but]


def kinds(requests: list[Request]) -> Counter[str]:
    """How many of each method, copies apart."""
    return Counter(request.method for request in of_the_test(requests))


def test_a_thousand_new_files_cost_a_thousand_puts(behind: Behind, relay: FaultyRelay) -> None:
    """1,000 files of 4 KiB: one PUT each, a few for their folder; HEADs and LISTs for directories only."""
    mount, contents = behind
    wanted = {f"folder/file{n}": b"%4d" % n * 1024 for n in range(FILES)}
    relay.forget()
    began = time.monotonic()
    (mount.path / "folder").mkdir()
    for name, content in wanted.items():
        (mount.path / name).write_bytes(content)
    mount.wait()
    cost = kinds(relay.requests())
    lists = [request for request in relay.requests("GET") if "list-type" in request.query]
    of_folder = [r for r in relay.requests("PUT") if r.path.endswith("/folder/")]
    # On a busy machine an answer may be overdue: then it is sent again, and looked whether both arrived.
    again = counter(mount, "retries")
    assert cost["PUT"] - len(of_folder) <= FILES + again
    heads_of_files = [r for r in relay.requests("HEAD") if "file" in r.path]
    assert len(heads_of_files) <= again
    # The folder's times are stored once a second, for as long as files come.
    few = 10 + (time.monotonic() - began) / TOUCH_PERIOD_S
    assert len(of_folder) <= few
    assert cost["POST"] == cost["DELETE"] == 0
    assert cost["HEAD"] - len(heads_of_files) <= few
    # What is stored with the folder's own object is looked at before its times are put there.
    described = [
        request
        for request in relay.requests("GET")
        if request.query.startswith(("acl", "tagging", "ownershipControls"))
    ]
    told = [*lists, *described]
    # What was tried at the start may still be on its way to be removed.
    others = [r for r in relay.requests("GET") if r not in told and "probe-" not in r.query]
    assert not others
    assert len(lists) <= 20 + few
    assert len(described) <= 2 * cost["HEAD"] + 1
    assert held(contents) == wanted


@pytest.fixture
def patient(
    bucket: str, relay: FaultyRelay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> Behind:
    """A mount that begins no upload until somebody waits for it."""
    mount = mount_factory(bucket, "--upload-delay", "1h", endpoint_url=relay.url)
    (mount.path / "first").write_bytes(b"what comes once is sent")
    mount.wait()
    return mount, S3Contents(s3_server.boto3_client(), bucket)


def test_ten_rewrites_are_one_upload(patient: Behind, relay: FaultyRelay) -> None:
    """Only the last state travels, by one PUT."""
    mount, contents = patient
    relay.forget()
    for number in range(10):
        (mount.path / "file").write_bytes(b"%d" % number * 1000)
    mount.wait()
    assert [request.method for request in about("file", relay)] == ["PUT"]
    assert contents.read("file") == b"9" * 1000


def test_what_is_gone_before_its_upload_costs_nothing(patient: Behind, relay: FaultyRelay) -> None:
    """Files and a folder, small and large, made and removed: S3 never hears their names."""
    mount, contents = patient
    relay.forget()
    (mount.path / "doomed").write_bytes(b"doomed")
    (mount.path / "doomed-folder").mkdir()
    (mount.path / "doomed-folder/file").write_bytes(b"x" * 3_000_000)
    (mount.path / "doomed-folder/link").symlink_to("file")
    (mount.path / "doomed").unlink()
    shutil.rmtree(mount.path / "doomed-folder")
    mount.wait()
    assert about("doomed", relay, but=("GET",)) == []
    assert sorted(contents.listing()) == ["first"]


def test_rename_of_what_is_pending_is_no_copy(patient: Behind, relay: FaultyRelay) -> None:
    """One PUT under the last name, whatever it was called before; the same for a whole folder."""
    mount, contents = patient
    relay.forget()
    (mount.path / "draft").write_bytes(b"content")
    (mount.path / "draft").rename(mount.path / "draft2")
    (mount.path / "draft2").rename(mount.path / "final")
    (mount.path / "draft-folder").mkdir()
    for number in range(5):
        (mount.path / f"draft-folder/file{number}").write_bytes(b"%d" % number)
    (mount.path / "draft-folder").rename(mount.path / "final-folder")
    mount.wait()
    assert about("draft", relay, but=("GET",)) == []
    sent = about("final", relay, but=("GET",))
    assert {request.method for request in sent} == {"PUT"}
    assert len({request.path for request in sent}) == len(sent)
    wanted = {f"final-folder/file{n}": b"%d" % n for n in range(5)}
    assert held(contents) == wanted | {"final": b"content", "first": contents.read("first")}


def test_cost_of_removing_many(behind: Behind, relay: FaultyRelay) -> None:
    """``rm -rf`` of 300 uploaded files where If-Match of a deletion is not honoured: a list, then batches."""
    mount, contents = behind
    wait_until(lambda: bool(status_of(mount)["store_honours"]), "the probe ends")
    assert status_of(mount)["store_honours"]["delete_condition"] is False
    (mount.path / "folder").mkdir()
    for number in range(300):
        (mount.path / f"folder/file{number}").write_bytes(b"%d" % number)
    mount.wait()
    relay.forget()
    shutil.rmtree(mount.path / "folder")
    mount.wait()
    assert contents.listing() == {}
    cost = kinds(relay.requests())
    batches = [
        request for request in relay.requests("POST") if request.query.rstrip("=") == "delete"
    ]
    # One while nothing hinders rm; on a slow machine it is gathered in several turns.
    assert 0 < len(batches) == cost["POST"] <= 30
    assert cost["DELETE"] + cost["HEAD"] <= 20
    assert cost["PUT"] + cost["GET"] <= 30
