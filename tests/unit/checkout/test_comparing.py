"""What a file's ETag would be, for any way in which it may have been uploaded."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
import xxhash

from s3mount.transfer.proving import hash_file

MIB = 1 << 20


def etag_of(data: bytes, part_bytes: int) -> str:
    parts = [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize("part_mib", [1, 5, 8])
def test_hashes_of_a_file(tmp_path: Path, part_mib: int) -> None:
    data = random.Random(part_mib).randbytes(17 * MIB // 2 + 3)
    path = tmp_path / "f"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    digest = xxhash.xxh3_128_digest(data)
    try:
        multipart = etag_of(data, part_mib * MIB)
        for etag, is_right in (
            (hashlib.md5(data).hexdigest(), True),
            ("0" * 32, False),
            (multipart, True),
            (etag_of(data, len(data)), True),
            ("0" * 32 + "-2", None),
            ("opaque", None),
        ):
            assert hash_file(descriptor, len(data), etag) == (digest, is_right), etag
        with pytest.raises(OSError, match="shorter"):
            hash_file(descriptor, len(data) + 1, "")
    finally:
        os.close(descriptor)
