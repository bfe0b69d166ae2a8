"""Blobs and parts: what of a file is here, what is below, and what S3 already has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.flow.parts import PartPlan
from s3mount.refs import ContentRef, PartInfo
from s3mount.spool.blobs.blobs import Blob, BlobFolder
from s3mount.transfer.parts import PartsUpload

MIB = 1 << 20
BASE = ContentRef("k", "etag", 1000)


@pytest.fixture
def folder(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def over_base(folder: BlobFolder) -> Blob:
    blob = folder.create()
    blob.base, blob.base_limit = BASE, 1000
    blob.truncate(1000)
    return blob


def test_what_is_written_is_read_and_holes_are_zero(folder: BlobFolder) -> None:
    blob = folder.create()
    assert blob.write(10, b"abc") == 3
    assert blob.write(11, b"xyz") == 1
    assert blob.read(0, 100) == bytes(10) + b"axyz"
    assert blob.missing(0, 100) == []
    blob.release()
    assert blob.read(12, 1) == b"y"


def test_missing_is_what_only_the_base_has(folder: BlobFolder) -> None:
    blob = over_base(folder)
    blob.write(100, b"x" * 50)
    assert blob.missing(0, 1000) == [(0, 100), (150, 1000)]
    assert blob.fill(0, b"b" * 120) == 100
    assert blob.read(90, 20) == b"b" * 10 + b"x" * 10
    assert not blob.complete
    blob.fill(150, b"b" * 850)
    assert blob.complete


def test_what_was_cut_off_does_not_come_back(folder: BlobFolder) -> None:
    blob = over_base(folder)
    blob.write(800, b"x" * 100)
    assert blob.truncate(500) == 100
    blob.truncate(2000)
    assert blob.base_limit == 500
    assert blob.missing(0, 2000) == [(0, 500)]
    assert blob.read(500, 1500) == bytes(1500)


def test_a_clone_changes_alone(folder: BlobFolder) -> None:
    blob = over_base(folder)
    blob.write(5, b"one")
    clone = folder.clone(blob)
    clone.write(5, b"two")
    assert (blob.read(5, 3), clone.read(5, 3)) == (b"one", b"two")
    assert clone.base == BASE
    assert clone.missing(0, 1000) == blob.missing(0, 1000)
    assert folder.ids() == {blob.id, clone.id}
    clone.path.unlink()
    assert clone.read(5, 3) == b"two", "who has it open still reads it"


def sent_upload(size_parts: int) -> tuple[PartsUpload, list[int]]:
    forgotten: list[int] = []
    upload = PartsUpload("k", PartPlan(5 * MIB))
    upload.on_forgotten(forgotten.append)
    for index in range(size_parts):
        upload.begin(index)
        assert upload.arrived(index, PartInfo(index + 1, f"e{index}", 5 * MIB))
    return upload, forgotten


def test_a_write_takes_back_the_parts_that_it_touches() -> None:
    upload, forgotten = sent_upload(4)
    upload.wrote(5 * MIB - 1, 5 * MIB + 1)
    assert forgotten == [1, 2]
    assert upload.unsent(20 * MIB) == [0, 1]
    assert upload.finished_parts(20 * MIB) is None


def test_a_cut_takes_back_the_part_that_it_goes_through() -> None:
    upload, _ = sent_upload(4)
    upload.cut(10 * MIB)
    assert sorted(upload.sent) == [0, 1]
    upload.cut(7 * MIB)
    assert sorted(upload.sent) == [0]
    upload.cut(0)
    assert upload.sent == {}


def test_a_part_written_on_its_way_does_not_count() -> None:
    upload, forgotten = sent_upload(0)
    upload.begin(0)
    upload.wrote(0, 1)
    assert not upload.arrived(0, PartInfo(1, "old", 5 * MIB))
    assert upload.unsent(5 * MIB) == [0]
    assert forgotten == []
    upload.begin(0)
    assert upload.arrived(0, PartInfo(1, "new", 5 * MIB))
    assert upload.finished_parts(5 * MIB) == [PartInfo(1, "new", 5 * MIB)]


def test_a_part_is_sent_by_one_at_a_time() -> None:
    upload, _ = sent_upload(1)
    assert not upload.begin(0), "it was sent"
    assert upload.begin(1)
    upload.wrote(5 * MIB, 6 * MIB)
    assert not upload.begin(1), "its old bytes are on their way, and would pass for the new ones"
    assert not upload.arrived(1, PartInfo(2, "old", 5 * MIB))
    assert upload.begin(1)


def test_a_write_behind_the_end_takes_back_the_last_part(folder: BlobFolder) -> None:
    blob = folder.create()
    blob.upload, _ = sent_upload(0)
    blob.write(0, b"x" * (6 * MIB))
    for index in range(2):
        blob.upload.begin(index)
        blob.upload.arrived(index, PartInfo(index + 1, "e", 1))
    blob.write(15 * MIB, b"y")
    assert sorted(blob.upload.sent) == [0]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 60), st.integers(0, 30)),
        st.tuples(st.just("truncate"), st.integers(0, 80), st.just(0)),
        st.tuples(st.just("fill"), st.integers(0, 60), st.integers(0, 60)),
    ),
    max_size=12,
)


@given(operations, st.integers(0, 50))
def test_a_blob_over_a_base_is_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, int]],
    base_size: int,
) -> None:
    base = bytes(range(100, 100 + base_size))
    blob = BlobFolder(tmp_path_factory.mktemp("blobs")).create()
    blob.base, blob.base_limit = ContentRef("k", "e", base_size), base_size
    blob.truncate(base_size)
    model = bytearray(base)
    held = 0
    for number, (what, at, length) in enumerate(steps):
        if what == "write":
            held += blob.write(at, bytes([number + 1]) * length)
            if length:
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + length] = bytes([number + 1]) * length
        elif what == "truncate":
            held -= blob.truncate(at)
            model[at:] = bytes(max(0, at - len(model)))
        else:
            held += blob.fill(at, base[at : at + length])
    assert blob.extents.total == held
    for start, stop in blob.missing(0, blob.size):
        held += blob.fill(start, base[start:stop])
    assert blob.complete
    assert blob.read(0, 1000) == bytes(model)
    blob.release()
