"""Faults between mount and server: everything arrives, byte for byte, and reads back so."""

from __future__ import annotations

import os

import pytest

from tests.faults.conftest import Behind
from tests.faults.load import bodies, change, held, make, paid_uploads, shown
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import counter, pending_of
from tests.fuse.outcomes import outcome
from tests.servers.counting import Answer, Request
from tests.servers.faulty import BadDays, Fate, FaultyRelay

SLOW_DOWN = Answer(503, "SlowDown")
BROKEN = Answer(500, "InternalError")


def is_about_an_object(request: Request) -> bool:
    """Is it about an object of the test's, not about the bucket, nor one of the mount's own trials?"""
    _, _, key = request.path.lstrip("/").partition("/")
    return bool(key) and not key.startswith(".s3mount")


def moves_a_body(request: Request) -> bool:
    """Does it move bytes of an object? Not those of large ones to us: S3 vouches for whole objects only."""
    return is_about_an_object(request) and (request.method == "PUT" or "large" not in request.path)


DAYS = {
    "errors": BadDays((BROKEN, SLOW_DOWN), share=0.4, seed=1),
    "resets": BadDays((Fate.RESET_SENDING, Fate.RESET_RECEIVING), share=0.5, seed=2),
    "cuts": BadDays((Fate.CUT,), share=0.5, seed=3),
    "shortened": BadDays((Fate.SHORTEN,), share=0.5, seed=4, befalls=is_about_an_object),
    "spoilt": BadDays(
        (Fate.SPOIL_SENDING, Fate.SPOIL_RECEIVING), share=0.6, seed=5, befalls=moves_a_body
    ),
    "lost answers": BadDays((Fate.LOSE_ANSWER,), share=0.5, seed=6),
    "twice": BadDays((Fate.TWICE,), share=0.6, seed=7),
    "stalls": BadDays(
        (Fate.STALL_SENDING, Fate.STALL_RECEIVING, Fate.SWALLOW_ANSWER),
        share=0.2,
        seed=8,
        in_a_row_max=1,
        befalls=moves_a_body,
    ),
    "trickle": BadDays((Fate.TRICKLE,), share=0.3, seed=9, in_a_row_max=1),
}


DAYS_OF_ANY_SERVER = ("errors", "cuts", "stalls", "trickle")
"""After these it does not matter whose answers they are: one server does, and saves two minutes."""
CASES = [
    (server, kind)
    for kind in DAYS
    for server in ("localstack", "ceph")
    if server == "ceph" or kind not in DAYS_OF_ANY_SERVER
]


@pytest.mark.parametrize(("s3_server", "kind"), CASES, indirect=["s3_server"])
def test_everything_arrives_and_reads_back(behind: Behind, relay: FaultyRelay, kind: str) -> None:
    """Made, changed, moved, removed and read again, with one kind of fault all the time."""
    mount, contents = behind
    relay.decide = DAYS[kind]
    wanted = make(mount.path, seed=1)
    mount.wait(100)
    wanted = change(mount.path, wanted)
    mount.wait(100)
    relay.decide = lambda request: None
    assert held(contents) == wanted
    assert counter(mount, "conflicts") == 0
    wait_until(lambda: not paid_uploads(contents), "no upload is left to be paid for")
    mount.remount(fresh_state=True, fresh_cache=True)
    relay.decide = DAYS[kind]
    assert shown(mount.path) == wanted
    relay.decide = lambda request: None
    assert pending_of(mount)["changes"] == 0
    happened = sum(relay.met.values())
    assert happened >= 5, f"too little went wrong to prove anything: {relay.met}"


def test_every_answer_is_spoilt_once(behind: Behind, relay: FaultyRelay) -> None:
    """Each read of a whole object meets a flipped bit first: it is found and asked for again."""
    mount, contents = behind
    wanted = {name: body for name, body in bodies(seed=2).items() if "large" not in name}
    for name, body in wanted.items():
        contents.put(name, body)
    relay.decide = BadDays(
        (Fate.SPOIL_RECEIVING,),
        share=1.0,
        seed=10,
        in_a_row_max=1,
        befalls=lambda request: request.method == "GET" and is_about_an_object(request),
    )
    assert shown(mount.path) == wanted
    assert relay.met[Fate.SPOIL_RECEIVING] >= sum(bool(body) for body in wanted.values())
    assert counter(mount, "checksum_errors") >= relay.met[Fate.SPOIL_RECEIVING]


def test_bytes_that_stay_spoilt_are_an_error(behind: Behind, relay: FaultyRelay) -> None:
    """Where every answer is wrong, the reader gets EIO and never the wrong bytes."""
    mount, contents = behind
    wanted = {name: body for name, body in bodies(seed=3).items() if body and "large" not in name}
    for name, body in wanted.items():
        contents.put(name, body)
    names = sorted(os.listdir(mount.path))
    relay.decide = lambda request: Fate.SPOIL_RECEIVING if moves_a_body(request) else None
    assert {name: outcome((mount.path / name).read_bytes) for name in names} == (
        dict.fromkeys(wanted, "EIO")
    )
    relay.decide = lambda request: None
    assert shown(mount.path) == wanted
