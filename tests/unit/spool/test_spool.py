"""The spool's books: changes, who reads what, and what outlives the process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from s3mount.errors import LocalDiskError
from s3mount.refs import Attributes, ContentRef, ObjectHeaders
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put, blob_id_of, carries
from s3mount.spool.journal.inspection import inspect
from s3mount.spool.journal.states import Event
from s3mount.spool.send_errors import TryAgain
from s3mount.spool.spool import Spool
from tests.sim.world import inline, simulated

ATTRIBUTES = Attributes(0o100644, 1, 2, 3, 4, 5)


def opened(folder: Path) -> Spool:
    folder.mkdir(exist_ok=True)
    return Spool.open(folder, size_bytes_max=1000, offload=inline)


def put(key: str, **fields: object) -> Put:
    return Put(key=key, attributes=ATTRIBUTES, **fields)  # type: ignore[arg-type]


def copy(source: str, key: str) -> Copy:
    return Copy(key=key, source=ContentRef(source, "e", 1), attributes=ATTRIBUTES)


def finish(spool: Spool, key: str) -> None:
    """S3 has what is pending of ``key``."""
    change = spool.changes[key]
    change.apply(Event.START)
    spool.finish(change)


def test_a_batch_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.record([put("a")])
    spool.journal.close()
    with pytest.raises(LocalDiskError):
        spool.record([put("b"), put("c")], ["a"])
    assert set(spool.changes) == {"a"}


def test_a_change_that_replaces_another_keeps_when_it_began_and_what_was_tried(
    tmp_path: Path,
) -> None:
    spool = opened(tmp_path)
    first = put("a")
    spool.record([first])
    first.note_try(11)
    second = put("a")
    spool.record([second])
    assert second.first_seq == first.seq < second.seq
    assert second.tried == (11,)
    spool.close()


def test_a_change_that_was_replaced_does_not_come_back(tmp_path: Path) -> None:
    """Whoever sends it, and waited meanwhile, notes another try of it."""
    spool = opened(tmp_path)
    first = copy("source", "a")
    spool.record([first])
    spool.record([Delete(key="a")])
    first.note_try("e")
    with pytest.raises(TryAgain):
        spool.save(first)
    assert isinstance(spool.changes["a"], Delete)
    spool.close()
    again = opened(tmp_path)
    assert isinstance(again.changes["a"], Delete)
    finish(again, "a")
    again.close()


def test_what_an_earlier_run_wrote_below_the_end_is_no_append(tmp_path: Path) -> None:
    base = ContentRef("a", "e", 4097)
    spool = opened(tmp_path)
    blob = spool.new_blob()
    blob.base, blob.base_limit = base, base.size
    for offset in (2771, 4097):
        spool.grew(blob.write(offset, b"x"))
    change = put("a", blob_id=blob.id, base=base, base_limit=base.size, expected="e")
    spool.record([change])
    spool.save(change)
    assert blob.changed_from == 2771
    spool.close()
    again = opened(tmp_path)
    assert again.live_blobs[blob.id].changed_from == 2771
    again.close()


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    blob = spool.new_blob()
    spool.grew(blob.write(0, b"x" * 50))
    spool.record([put("a", blob_id=blob.id, expected=ABSENT), copy("s", "b")])
    spool.record([Delete(key="s", expected="e")])
    orphan = spool.new_blob()
    spool.close()
    again = opened(tmp_path)
    assert set(again.changes) == {"a", "b", "s"}
    assert again.changes["a"].expected == ABSENT
    assert again.used_bytes == 50
    assert again.live_blobs[blob.id].read(0, 100) == b"x" * 50
    assert again.blobs.ids() == {blob.id}, f"{orphan.id} was never closed"
    assert again.next_seq() > max(change.seq for change in again.changes.values())
    assert again.dependencies.readers_of("s") == {"b"}
    assert 4 in again.changes["a"].tried, "the run before may have sent it"
    again.close()


def test_the_order_of_what_reads_and_what_replaces(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.record([copy("a", "b"), Delete(key="a")])
    assert spool.dependencies.blocker_of(spool.changes["a"]) == "b"
    assert spool.dependencies.blocker_of(spool.changes["b"]) is None
    assert spool.dependencies.waits_in_circle(copy("b", "a"))
    assert not spool.dependencies.waits_in_circle(copy("x", "a"))
    finish(spool, "b")
    assert spool.dependencies.blocker_of(spool.changes["a"]) is None
    spool.close()


@pytest.mark.parametrize("length", [2, 3, 5])
def test_circles_of_any_length_are_seen(tmp_path: Path, length: int) -> None:
    spool = opened(tmp_path)
    spool.record([copy(f"k{n}", f"k{n + 1}") for n in range(length - 1)])
    last = copy(f"k{length - 1}", "k0")
    assert spool.dependencies.waits_in_circle(last)
    fetched = spool.as_fetched(last)
    assert (fetched.op, fetched.detach, fetched.base) == ("put", True, last.source)
    spool.close()


def test_a_folders_marker_waits_for_what_is_deleted_below(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.record([Delete(key="d/"), Delete(key="d/a"), put("d/b")])
    assert spool.dependencies.blocker_of(spool.changes["d/"]) == "d/a"
    finish(spool, "d/a")
    assert spool.dependencies.blocker_of(spool.changes["d/"]) is None
    assert {change.key for change in spool.dependencies.below("d/")} == {"d/b"}
    spool.close()


def test_a_replaced_changes_blob_is_dropped(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    blob = spool.new_blob()
    spool.grew(blob.write(0, b"x" * 50))
    spool.record([put("a", blob_id=blob.id)])
    spool.record([put("b", blob_id=blob.id)], ["a"])
    assert spool.used_bytes == 50, "it moved along"
    spool.record([Delete(key="b")])
    assert spool.used_bytes == 0
    spool.close()
    assert spool.blobs.ids() == set()


def test_a_file_that_was_cut_or_grew_before_the_kill_is_as_long_as_it_is(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    base = ContentRef("a", "e", 100)
    for key, size in (("grew", 150), ("cut", 30)):
        blob = spool.new_blob()
        blob.base, blob.base_limit = base, 100
        blob.truncate(100)
        spool.record([put(key, blob_id=blob.id)])
        blob.truncate(size)
    spool.close()
    again = opened(tmp_path)
    grew, cut = (again.live_blobs[blob_id_of(again.changes[key])] for key in ("grew", "cut"))
    assert (grew.size, grew.missing(0, 150)) == (150, [(0, 100)])
    assert (cut.size, cut.missing(0, 150)) == (30, [(0, 30)])
    again.close()


def test_a_change_whose_blob_is_gone_keeps_its_size(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    blob = spool.new_blob()
    spool.grew(blob.write(0, b"x"))
    spool.record([put("a", blob_id=blob.id)])
    spool.close()
    blob.path.unlink()
    again = opened(tmp_path)
    assert again.changes["a"].size == 1
    assert again.live_blobs[blob.id].is_gone
    again.close()


@simulated
async def test_force_flushes_blob_and_journal_together(tmp_path: Path) -> None:
    flushed: list[str] = []
    spool = opened(tmp_path)
    blob = spool.new_blob()
    original = spool.journal.force

    def force() -> None:
        flushed.append("journal")
        original()

    spool.journal.force = force  # type: ignore[method-assign]
    await spool.force(blob)
    await spool.force(None)
    assert flushed == ["journal"], "nothing was committed between the two"
    spool.record([put("a", blob_id=blob.id)])
    await spool.force(None)
    assert flushed == ["journal", "journal"]
    blob.path.unlink()
    await spool.force(blob)
    spool.close()


def test_what_an_upload_carries_is_compared_with_what_the_file_is_now() -> None:
    def change(begun: Attributes, now: Attributes, *, streamed: bool) -> Put:
        return Put(key="a", attributes=now, upload_attributes=begun, upload_streamed=streamed)

    def attributes(mode: int = 0o100644, mtime_ns: int = 10**18) -> Attributes:
        return Attributes(mode, 1, 2, mtime_ns, 4, 5)

    assert carries(change(attributes(), attributes(), streamed=False))
    assert not carries(change(attributes(), attributes(mode=0o100600), streamed=True))
    assert not carries(change(attributes(), attributes(mtime_ns=10**18 + 1), streamed=False))
    assert carries(change(attributes(), attributes(mtime_ns=10**18 + 1), streamed=True))
    assert not carries(change(attributes(), attributes(mtime_ns=10**17), streamed=True))


def test_a_hole_takes_no_room_of_the_spool_before_and_after_a_start(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, size_bytes_max=1 << 30)
    blob = spool.new_blob()
    blob.truncate(1 << 40)
    spool.grew(blob.write(1 << 39, b"data" * 1024))
    spool.record([Put(key="hole", blob_id=blob.id)])
    assert spool.used_bytes == spool.dependencies.put_bytes == 4096
    spool.close()
    on_disk = inspect(tmp_path, is_in_use=False).size_bytes
    spool = Spool.open(tmp_path, size_bytes_max=1 << 30)
    assert spool.dependencies.put_bytes == on_disk
    (blob,) = spool.live_blobs.values()
    assert (spool.changes["hole"].size, blob.size) == (1 << 40, 1 << 40)
    assert 4096 <= spool.used_bytes < 1 << 20
    assert blob.read((1 << 39) - 2, 6) == b"\0\0data"
    assert blob.read(5, 4) == bytes(4)
    spool.drop_blob(blob)
    assert spool.used_bytes == 0
    spool.close()


def test_a_row_of_an_earlier_release_is_read() -> None:
    """It had the storage class beside the headers, and headers without encryption, lock and tags."""
    headers = {"metadata": {"author": "ann"}, "content_type": "text/plain", "storage_class": "X"}
    row = {"key": "k", "op": "put", "seq": 7, "headers": headers, "storage_class": "X"}
    change = msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=Change)
    assert (change.key, change.op, change.seq) == ("k", "put", 7)
    assert change.headers == ObjectHeaders(
        metadata={"author": "ann"}, content_type="text/plain", storage_class="X"
    )
