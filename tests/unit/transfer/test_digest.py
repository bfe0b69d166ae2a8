from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import trio
from awscrt import checksums

from s3mount.errors import RejectedError
from s3mount.flow.parts import PartPlan
from s3mount.refs import FileSlice, PartInfo
from s3mount.transfer.digest import (
    crc64nvme_of,
    etag_if_parts,
    etag_if_put,
    etag_of,
    is_part,
    md5_of,
)

PART = 5 << 20


def test_the_etag_of_parts_is_the_one_that_s3_is_known_to_give() -> None:
    """Two parts of 5 MiB and 1 byte of zeros; written down from AWS's own rule with md5sum and xxd."""
    first = hashlib.md5(bytes(PART)).digest()
    assert first.hex() == "5f363e0e58a95f06cbe9bbc662c5dfb6"
    second = hashlib.md5(b"\0").digest()
    assert second.hex() == "93b885adfe0da089cdf634904fd59f71"
    assert etag_of([first, second]) == hashlib.md5(first + second).hexdigest() + "-2"


def test_slices_are_hashed_and_nothing_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "f"
    data = bytes(range(256)) * 5000
    path.write_bytes(data)

    async def main() -> None:
        for offset, length in ((0, 0), (1, 1), (100, 255), (77, 1_000_000), (0, len(data))):
            piece = data[offset : offset + length]
            place = FileSlice(str(path), offset, length)
            assert await md5_of(place) == hashlib.md5(piece).digest() == await md5_of(piece)
            crc = base64.b64encode(checksums.crc64nvme(piece).to_bytes(8, "big")).decode()
            assert await crc64nvme_of(place) == crc == await crc64nvme_of(piece)
        assert await etag_if_put(str(path), 1000) == hashlib.md5(data[:1000]).hexdigest()
        with pytest.raises(RejectedError):
            await md5_of(FileSlice(str(path), 0, len(data) + 1))
        with pytest.raises(RejectedError):
            await etag_if_parts(str(tmp_path / "gone"), 1, PartPlan(PART))

    trio.run(main)


def test_the_check_value_of_crc64nvme() -> None:
    """The catalogue's check value for "123456789" (reveng, CRC-64/NVME)."""

    async def main() -> None:
        expected = base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
        assert await crc64nvme_of(b"123456789") == expected

    trio.run(main)


def test_a_part_is_known_by_checksum_or_md5_and_else_not_at_all() -> None:
    body = b"part"
    md5 = hashlib.md5(body).hexdigest()

    async def main() -> None:
        crc = await crc64nvme_of(body)
        assert await is_part(body, PartInfo(1, "opaque", 4, crc))
        assert await is_part(body, PartInfo(1, md5, 4))
        assert await is_part(body, PartInfo(1, md5, 4, "AAAAAA=="))  # a 32-bit checksum: by MD5
        assert not await is_part(body, PartInfo(1, md5, 5))
        assert not await is_part(b"trap", PartInfo(1, "opaque", 4, crc))
        assert not await is_part(b"trap", PartInfo(1, md5, 4))
        assert not await is_part(body, PartInfo(1, "opaque", 4))

    trio.run(main)
