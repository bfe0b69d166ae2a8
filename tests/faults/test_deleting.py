"""A deletion never takes away what somebody else wrote meanwhile."""

from __future__ import annotations

from tests.faults.conftest import Behind
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import counter, pending_of
from tests.servers.counting import WRITING
from tests.servers.faulty import Fate, FaultyRelay


def test_what_somebody_else_wrote_is_not_deleted(behind: Behind, relay: FaultyRelay) -> None:
    """Removed and moved away here, overwritten there before it was sent: theirs stays and shows itself."""
    mount, contents = behind
    for name in ("removed", "moved", "gone"):
        (mount.path / name).write_bytes(b"ours")
    mount.wait()
    with relay.holding(*WRITING):
        (mount.path / "removed").unlink()
        (mount.path / "moved").rename(mount.path / "new name")
        (mount.path / "gone").unlink()
        contents.put("removed", b"theirs, longer")
        contents.delete("gone")
        # The copy goes first, of the version that was moved.
        relay.release()
        wait_until(lambda: "new name" in contents.listing(), "it is copied")
    mount.wait()
    assert contents.read("removed") == b"theirs, longer"
    assert sorted(contents.listing()) == ["new name", "removed"]
    assert contents.read("new name") == b"ours"
    wait_until(lambda: (mount.path / "removed").exists(), "theirs is shown")
    assert (mount.path / "removed").read_bytes() == b"theirs, longer"
    assert not (mount.path / "gone").exists()
    assert counter(mount, "conflicts") == 1
    assert pending_of(mount)["changes"] == 0


def test_lost_answers_are_no_reason_to_keep_it(behind: Behind, relay: FaultyRelay) -> None:
    """Written and removed while no answer comes back: it goes, though S3 told of no version."""
    mount, contents = behind
    relay.decide = lambda request: (
        Fate.LOSE_ANSWER if request.method in ("PUT", "DELETE") and "file" in request.path else None
    )
    for number in range(5):
        (mount.path / f"file{number}").write_bytes(b"%d" % number)
    wait_until(
        lambda: sum("file" in key for key in contents.listing()) == 5, "they are in S3, unheard of"
    )
    for number in range(5):
        (mount.path / f"file{number}").unlink()
    wait_until(lambda: contents.listing() == {}, "all are gone, unheard of")
    relay.decide = lambda request: None
    mount.wait()
    assert contents.listing() == {}
    assert counter(mount, "conflicts") == 0
