"""What the checksums of a huge file cost that is one hole: ``python -m bench.micro.hole_sums [GIB]``."""

from __future__ import annotations

import sys
import time

from s3mount.s3.checksums import BLOCK_BYTES, BLOCK_SHIFT
from s3mount.spool.blobs.block_checksums import BlockSums


def main() -> None:
    size = int(sys.argv[1]) << 30 if len(sys.argv) > 1 else 1 << 40
    sums = BlockSums()
    began_s = time.perf_counter()
    whole = sums.of_whole(size)
    took_s = time.perf_counter() - began_s
    assert whole is not None
    print(f"by chunks: {took_s * 1e3:.0f} ms for {size >> 30} GiB")
    sample = 1 << 16
    began_s = time.perf_counter()
    for block in range(sample):
        sums._padded(block, size)
    each_s = (time.perf_counter() - began_s) / sample
    print(f"by blocks of {BLOCK_BYTES >> 10} KiB: {each_s * (size >> BLOCK_SHIFT) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
