"""Contents that are read, and files that are written like them."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from pathlib import Path

import pytest
import trio
from awscrt import checksums as crt
from hypothesis import given
from hypothesis import strategies as st

from s3mount.dedupe.index import IndexedContent
from s3mount.dedupe.matcher import DedupeMatcher
from s3mount.dedupe.proof import has_etag_of
from s3mount.dedupe.read_checksums import AHEAD_BYTES, TRACKS_MAX, ReadChecksums, RecentReads
from s3mount.refs import ContentRef
from s3mount.s3.checksums import BLOCK_BYTES
from s3mount.transfer.digest import etag_of

SIZE = 3 * BLOCK_BYTES + 1000
CONTENT = os.urandom(SIZE)
SUMS = [crt.crc64nvme(CONTENT[at : at + BLOCK_BYTES]) for at in range(0, SIZE, BLOCK_BYTES)]


def ref(key: str = "a", size: int = SIZE) -> ContentRef:
    return ContentRef(key, "e", size, None)


@given(st.lists(st.integers(1, SIZE - 1), max_size=12), st.randoms(use_true_random=False))
def test_reads_in_any_order_add_up(cuts: list[int], rng: random.Random) -> None:
    """The kernel reads ahead: the pieces of a sequential read arrive as they like."""
    edges = [0, *sorted(set(cuts)), SIZE]
    pieces = list(itertools.pairwise(edges))
    rng.shuffle(pieces)
    track = ReadChecksums(ref())
    done = [track.saw(start, CONTENT[start:stop]) for start, stop in pieces]
    assert done == [False] * (len(pieces) - 1) + [True]
    assert [track.sums[block] for block in range(track.blocks)] == SUMS


def test_random_reads_far_away_are_not_followed() -> None:
    track = ReadChecksums(ref(size=1 << 40))
    assert not track.saw(AHEAD_BYTES + 1, b"x" * BLOCK_BYTES)
    assert track.sums == {}


def test_the_number_of_contents_followed_is_bounded() -> None:
    tracks = RecentReads()
    for number in range(TRACKS_MAX + 10):
        tracks.of(ref(str(number))).saw(0, CONTENT[:BLOCK_BYTES])
    assert len(tracks.beginning_with(SUMS[0])) == TRACKS_MAX


def test_a_file_is_like_a_known_one_until_it_deviates_or_grows_longer() -> None:
    written: list[int | None] = [*SUMS[:3], 7]
    known = IndexedContent(ref(), SUMS)

    matcher = DedupeMatcher([known])
    assert matcher.still_matches(BLOCK_BYTES, written.__getitem__, 1)
    assert matcher.still_matches(3 * BLOCK_BYTES, written.__getitem__, 3)
    assert not matcher.still_matches(SIZE + 1, written.__getitem__, 3)

    matcher = DedupeMatcher([known, IndexedContent(ref(size=1 << 30), [*SUMS[:2], 9, 9])])
    assert matcher.still_matches(2 * BLOCK_BYTES, written.__getitem__, 2)
    assert not matcher.still_matches(4 * BLOCK_BYTES, written.__getitem__, 4)
    assert not matcher.still_matches(4 * BLOCK_BYTES, written.__getitem__, 4)

    written[1] = None
    matcher = DedupeMatcher([known])
    assert matcher.still_matches(2 * BLOCK_BYTES, written.__getitem__, 2), (
        "a block is not whole yet"
    )
    written[1] = 5
    assert not matcher.still_matches(2 * BLOCK_BYTES, written.__getitem__, 2)


@pytest.mark.parametrize("part_mib", [5, 8])
def test_etags_of_parts_prove_it_whoever_cut_them(tmp_path: Path, part_mib: int) -> None:
    path = tmp_path / "file"
    content = os.urandom(1 << 20) * 17
    path.write_bytes(content)
    step = part_mib << 20
    md5s = [
        hashlib.md5(content[at : at + step], usedforsecurity=False).digest()
        for at in range(0, len(content), step)
    ]
    there = ContentRef("a", etag_of(md5s), len(content), None)
    assert trio.run(has_etag_of, str(path), len(content), there, 9 << 20)
    with path.open("r+b") as file:
        file.seek(16 << 20)
        file.write(b"changed")
    assert not trio.run(has_etag_of, str(path), len(content), there, 9 << 20)


def test_an_etag_that_is_no_digest_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000)
    for etag in ("", "opaque", "0" * 32, "0" * 32 + "-1", "x-y", "0" * 32 + "-9999999"):
        assert not trio.run(has_etag_of, str(path), 20_000, ContentRef("a", etag, 20_000), 8 << 20)
