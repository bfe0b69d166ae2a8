"""Whether bytes are an object's: by ETags of parts, by checksums, and where nothing tells."""

from __future__ import annotations

import base64
import hashlib
import random
import zlib
from collections.abc import Callable

import pytest
from awscrt import checksums as crt
from hypothesis import given
from hypothesis import strategies as st

from s3mount.config import MIB
from s3mount.flow.parts import PartPlan
from s3mount.refs import ObjectDigests
from s3mount.transfer import proving
from s3mount.transfer.proving import agreed, fitting_plans, part_count, proven, trials


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cut(data: bytes, *lengths: int) -> list[bytes]:
    """Parts of these lengths, the last length again and again."""
    parts, start, left = [], 0, list(lengths)
    while start < len(data):
        length = left.pop(0) if len(left) > 1 else left[0]
        parts.append(data[start : start + length])
        start += length
    return parts


def etag_of(data: bytes, *lengths: int) -> str:
    parts = cut(data, *lengths)
    return f"{md5(b''.join(bytes.fromhex(md5(part)) for part in parts))}-{len(parts)}"


def told(data: bytes, etag: str, **more: object) -> ObjectDigests:
    return ObjectDigests(len(data), etag, True, **more)  # type: ignore[arg-type]


def damaged(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@given(st.binary(min_size=1, max_size=300), st.integers(1, 40))
def test_bytes_come_in_any_pieces(data: bytes, length: int) -> None:
    parts = tuple(map(len, cut(data, 7)))
    for etag, lengths in (
        (md5(data), ()),
        (etag_of(data, len(data)), ()),
        (etag_of(data, 7), parts),
    ):
        verdicts = []
        for trial in trials(etag, len(data), None, told(data, etag, part_lengths=lengths)):
            for start in range(0, len(data), length):
                trial.update(memoryview(data)[start : start + length])
            verdicts.append(trial.verdict())
        assert agreed(verdicts) is True


@pytest.mark.parametrize("part_mib", [5, 8, 11])
def test_parts_of_any_whole_mib_are_found_without_the_stores_help(part_mib: int) -> None:
    data = random.Random(part_mib).randbytes(24 * MIB + 3)
    etag = etag_of(data, part_mib * MIB)
    assert proven(data, etag, None) is True
    # Of what it is made was guessed: other bytes may be those of other parts.
    assert proven(damaged(data), etag, None) is None


@pytest.mark.parametrize(
    "etag", ["", "opaque", "x-3", f"{'0' * 32}-0", f"{'0' * 32}-9", f"{'0' * 32}-³", "A" * 32]
)
def test_what_is_no_digest_proves_nothing(etag: str) -> None:
    assert list(trials(etag, 5, None)) == []
    assert proven(b"12345", etag, None) is None


def test_a_plain_etag_proves_both_unless_the_store_says_that_it_is_none() -> None:
    assert proven(b"abc", md5(b"abc"), None) is True
    assert proven(b"abd", md5(b"abc"), None) is False
    assert proven(b"abd", md5(b"abc"), True) is False
    assert proven(b"abd", md5(b"abc"), False) is None
    kms = ObjectDigests(3, "5" * 32, False)
    assert proven(b"abd", "5" * 32, None, kms) is None


def test_parts_that_the_store_tells_prove_both() -> None:
    data = random.Random(1).randbytes(1000)
    etag = etag_of(data, 300, 501, 100)
    assert proven(data, etag, None) is None
    digests = told(data, etag, part_lengths=(300, 501, 100, 99))
    assert proven(data, etag, None, digests) is True
    assert proven(damaged(data), etag, None, digests) is False
    encrypted = ObjectDigests(1000, etag, False, part_lengths=(300, 501, 100, 99))
    assert proven(damaged(data), etag, None, encrypted) is None
    first = told(data, etag_of(data, 300), first_part_bytes=300)
    assert proven(data, etag_of(data, 300), None, first) is True
    assert proven(damaged(data), etag_of(data, 300), None, first) is None


CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32c": lambda data: crt.crc32c(data).to_bytes(4, "big"),
    "crc64nvme": lambda data: crt.crc64nvme(data).to_bytes(8, "big"),
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_stored_checksums_prove_both_whatever_the_etag_is(algorithm: str) -> None:
    data = random.Random(2).randbytes(1000)
    checksum = CHECKSUMS[algorithm]
    value = base64.b64encode(checksum(data)).decode()
    for etag in ("opaque", f"{'0' * 32}-3", "0" * 32):
        digests = ObjectDigests(1000, etag, False, {algorithm: value})
        assert proven(data, etag, None, digests) is True
        assert proven(damaged(data), etag, None, digests) is False
    # A checksum that fits shows that an ETag which does not is no digest.
    assert proven(data, "0" * 32, True, told(data, "0" * 32, checksums={algorithm: value})) is True
    parts = b"".join(map(checksum, cut(data, 400, 500)))
    composite = {algorithm: base64.b64encode(checksum(parts)).decode()}
    digests = ObjectDigests(1000, "x-3", False, composite, True, (400, 500, 100))
    assert proven(data, "x-3", None, digests) is True
    assert proven(damaged(data), "x-3", None, digests) is False
    assert proven(data, "x-3", None, ObjectDigests(1000, "x-3", False, composite, True)) is None


def test_checksums_that_are_not_understood_tell_nothing() -> None:
    odd = {"crc128": "AAAA", "crc32": "not base64"}
    assert proven(b"abc", "x", None, told(b"abc", "x", checksums=odd)) is None


def test_the_empty_object() -> None:
    assert proven(b"", md5(b""), None) is True
    assert proven(b"", etag_of(b"x", 1)[:-1] + "1", None) is None
    empty = f"{md5(bytes.fromhex(md5(b'')))}-1"
    assert proven(b"", empty, None) is True


@given(st.integers(1, 50 << 40), st.integers(1, 10_000))
def test_every_plan_fits(size: int, parts: int) -> None:
    plans = list(fitting_plans(size, parts))
    assert len(plans) <= proving.TRIES_MAX
    if parts <= 1000:
        for plan in plans:
            lengths = list(plan())
            assert (len(lengths), sum(lengths)) == (parts, size)


@given(st.sampled_from(proving.USUAL_PART_MIB), st.integers(9, 40), st.integers(1, MIB))
def test_usual_part_sizes_are_among_the_tries(part_mib: int, whole: int, rest: int) -> None:
    part_bytes = part_mib * MIB
    size = (whole - 1) * part_bytes + min(rest, part_bytes)
    assert part_bytes in [next(plan()) for plan in fitting_plans(size, whole)]


@pytest.mark.parametrize("part_mib", [8, 5, 16])
def test_parts_that_grow_as_our_own_do(part_mib: int) -> None:
    """Above 5 GiB too, where nothing has room in memory: only lengths are looked at."""
    plan = PartPlan(part_mib * MIB)
    size = 1000 * part_mib * MIB + 5
    lengths = [part.length for part in plan.ranges(size)]
    assert lengths in [list(found()) for found in fitting_plans(size, len(lengths))]


def test_part_count() -> None:
    assert part_count("a" * 32 + "-3") == 3
    for etag in ("a" * 32, "a" * 32 + "-10001", "A" * 32 + "-3", "", "x-3"):
        assert part_count(etag) is None
