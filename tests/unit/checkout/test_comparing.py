"""What a file's ETag would be, for any way in which it may have been uploaded."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from s3mount.checkout import comparing
from s3mount.checkout.comparing import fitting_plans, hash_file, is_md5, part_count
from s3mount.flow.parts import PartPlan

MIB = 1 << 20


def etag_of(data: bytes, part_bytes: int) -> str:
    parts = [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize(
    ("etag", "parts"),
    [
        ("a" * 32 + "-3", 3),
        ("a" * 32, None),
        ("a" * 32 + "-", None),
        ("a" * 32 + "-0", None),
        ("a" * 32 + "-10001", None),
        ("A" * 32 + "-3", None),
        ("", None),
        ("x-3", None),
        ("a" * 32 + "-³", None),
    ],
)
def test_part_count(etag: str, parts: int | None) -> None:
    assert part_count(etag) == parts


def test_is_md5() -> None:
    assert is_md5("0123456789abcdef" * 2)
    assert not is_md5("0123456789abcdeg" * 2)
    assert not is_md5("0" * 31)


@given(st.integers(1, 50 << 40), st.integers(1, 10_000))
def test_every_plan_fits(size: int, parts: int) -> None:
    plans = list(fitting_plans(size, parts))
    assert len(plans) <= comparing.TRIES_MAX
    if parts <= 1000:
        for plan in plans:
            lengths = list(plan())
            assert (len(lengths), sum(lengths)) == (parts, size)


@given(st.sampled_from(comparing.COMMON_PART_MIB), st.integers(1, 40), st.integers(1, MIB))
def test_usual_part_sizes_are_among_the_tries(part_mib: int, whole: int, rest: int) -> None:
    part_bytes = part_mib * MIB
    size = (whole - 1) * part_bytes + min(rest, part_bytes)
    if whole > 8:
        firsts = [next(plan()) for plan in fitting_plans(size, whole)]
        assert part_bytes in firsts


def test_parts_that_grow_as_our_own_do() -> None:
    plan = PartPlan(8 * MIB)
    size = 1000 * 8 * MIB + 5
    lengths = [part.length for part in plan.ranges(size)]
    found = next(fitting_plans(size, len(lengths)))
    assert list(found()) == lengths


@pytest.mark.parametrize("part_mib", [1, 5, 8])
def test_hashes_of_a_file(tmp_path: Path, part_mib: int) -> None:
    data = random.Random(part_mib).randbytes(17 * MIB // 2 + 3)
    path = tmp_path / "f"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    digest = xxhash.xxh3_128_digest(data)
    try:
        plain = hashlib.md5(data).hexdigest()
        assert hash_file(descriptor, len(data), "0" * 32) == (digest, plain)
        multipart = etag_of(data, part_mib * MIB)
        assert hash_file(descriptor, len(data), multipart) == (digest, multipart)
        assert hash_file(descriptor, len(data), "0" * 32 + "-2") == (digest, "")
        assert hash_file(descriptor, len(data), "opaque") == (digest, "")
        assert hash_file(descriptor, len(data), etag_of(data, len(data))) == (
            digest,
            etag_of(data, len(data)),
        )
        with pytest.raises(OSError, match="shorter"):
            hash_file(descriptor, len(data) + 1, "")
    finally:
        os.close(descriptor)
