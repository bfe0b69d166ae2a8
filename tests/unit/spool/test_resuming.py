"""Going on with an upload of an earlier run: which of the parts in S3 hold the blob's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount.config import PART_BYTES_MIN
from s3mount.errors import NoSuchKeyError
from s3mount.flow.parts import PartPlan
from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders, PartInfo
from s3mount.s3.checksums import crc64nvme
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put
from s3mount.spool.spool import Spool
from s3mount.spool.upload.resuming import Resuming
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.parts import PartsUpload
from tests.sim.world import inline, simulated

PLAN = PartPlan(PART_BYTES_MIN)
PARTS = 4
OPAQUE = "0123456789abcdef0123456789abcdef"
"""It has the form of an MD5, as with SSE-KMS."""


class StoreThatTells(MemoryStore):
    """Lists ``told`` in place of the parts that it has."""

    told: list[PartInfo] | None = None

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        there = await super().list_parts(key, upload_id)
        return there if self.told is None else self.told


class Cut:
    """A spool with a file of ``PARTS`` parts whose upload was begun before the run was cut off."""

    def __init__(self, folder: Path) -> None:
        self.store = StoreThatTells()
        self.spool = Spool.open(folder, size_bytes_max=1 << 30, offload=inline)
        self.blob = self.spool.new_blob()
        attributes = Attributes(0o100644, 1, 2, 3, 4, 5)
        self.change = Put(key="large", attributes=attributes, blob_id=self.blob.id)
        for index in range(PARTS):
            self.blob.write(index * PLAN.part_bytes, b"%d" % index * 100)
        self.blob.truncate(PARTS * PLAN.part_bytes - 9)
        self.spool.record([self.change])

    async def begin(self, *noted: int) -> None:
        """Begin the upload; the journal has these parts."""
        self.change.upload_id = await self.store.create_multipart("large", ObjectHeaders())
        self.spool.journal.upload_begun(self.change.upload_id, "large")
        self.spool.save(self.change)
        for index in noted:
            self.spool.journal.part_sent(self.change.upload_id, await self.send(index))

    async def send(self, index: int, body: bytes | None = None) -> PartInfo:
        """A part arrives in S3."""
        data = self.part(index) if body is None else body
        return await self.store.upload_part("large", self.change.upload_id, index + 1, data)

    def part(self, index: int) -> bytes:
        """The bytes of a part."""
        return self.blob.read(index * PLAN.part_bytes, PLAN.part_bytes)

    async def resume(self) -> PartsUpload:
        """What the next run takes as sent."""
        resuming = Resuming(self.spool, self.store)
        resuming.take_over(lambda key: PartsUpload(key, PLAN))
        upload = self.blob.upload
        assert upload is not None
        await resuming.confirm(self.blob, upload)
        assert upload.is_confirmed
        assert not upload.sending
        return upload

    def noted(self) -> set[int]:
        """The parts that the journal has now."""
        return set(self.spool.journal.parts(self.change.upload_id))


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    """One of its own."""
    made = Cut(tmp_path)
    yield made
    made.spool.close()


def test_parts_that_arrived_unheard_are_not_sent_again(cut: Cut) -> None:
    async def main() -> None:
        await cut.begin(0)
        await cut.send(2)
        await cut.send(3)
        upload = await cut.resume()
        assert upload.unsent(cut.blob.size) == [1]
        assert cut.noted() == {0, 2, 3}
        await cut.send(1)
        parts = await cut.store.list_parts("large", upload.upload_id)
        await cut.store.complete_multipart("large", upload.upload_id, parts)

    simulated(main)


def test_parts_with_other_bytes_are_sent_again(cut: Cut) -> None:
    """What was on its way was an earlier state of it, or was cut short."""

    async def main() -> None:
        await cut.begin(0)
        await cut.send(1, b"x" * len(cut.part(1)))
        await cut.send(2, cut.part(2)[:-1])
        await cut.send(3)
        cut.blob.write(3 * PLAN.part_bytes + 5, b"changed")
        assert (await cut.resume()).unsent(cut.blob.size) == [1, 2, 3]
        assert cut.noted() == {0}

    simulated(main)


def test_an_opaque_etag_needs_a_checksum_beside_it(cut: Cut) -> None:
    async def main() -> None:
        await cut.begin()
        size = PLAN.part_bytes
        cut.store.told = [
            PartInfo(1, OPAQUE, size),
            PartInfo(2, OPAQUE, size, crc64nvme(cut.part(1))),
            PartInfo(3, OPAQUE, size, crc64nvme(cut.part(1))),
            PartInfo(9, OPAQUE, size),
        ]
        upload = await cut.resume()
        assert upload.sent == {1: cut.store.told[1]}

    simulated(main)


def test_holes_over_a_base_are_nobodys_zeros(cut: Cut) -> None:
    """The file has zeros where the version below it has its bytes: a part of zeros is not that part."""

    async def main() -> None:
        blob: Blob = cut.spool.new_blob()
        blob.base = ContentRef("large", "etag", PLAN.part_bytes)
        blob.base_limit = PLAN.part_bytes
        blob.truncate(PLAN.part_bytes)
        cut.change.blob_id = blob.id
        cut.spool.save(cut.change)
        cut.blob = blob
        await cut.begin()
        await cut.send(0, bytes(PLAN.part_bytes))
        assert (await cut.resume()).unsent(blob.size) == [0]

    simulated(main)


def test_an_upload_that_is_gone_is_told(cut: Cut) -> None:
    async def main() -> None:
        await cut.begin(0)
        await cut.store.abort_multipart("large", cut.change.upload_id)
        with pytest.raises(NoSuchKeyError) as caught:
            await cut.resume()
        assert caught.value.code == "NoSuchUpload"

    simulated(main)
