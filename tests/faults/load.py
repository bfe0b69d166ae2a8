"""What the tests with faults do to a mount: files of every size, made, changed, moved and removed."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.fuse.bucket_contents import S3Contents

MIB = 1 << 20
SIZES = {
    "empty": 0,
    "tiny": 3,
    "small": 4096,
    "inline": 60_000,
    "middle": 300_000,
    "large": 11 * MIB,
}


def bodies(seed: int) -> dict[str, bytes]:
    """Bytes of all sizes, two of each, by name."""
    rng = random.Random(seed)
    return {
        f"{name}{number}": rng.randbytes(size + number * (size > 0))
        for name, size in SIZES.items()
        for number in range(2 if size < MIB else 1)
    }


def make(root: Path, seed: int) -> dict[str, bytes]:
    """Write files of all sizes; what they hold."""
    wanted = bodies(seed)
    for name, content in wanted.items():
        (root / name).write_bytes(content)
    return wanted


def change(root: Path, wanted: dict[str, bytes]) -> dict[str, bytes]:
    """Rewrite, append, patch, move and remove some of what ``make`` made; what is there then."""
    now = dict(wanted)
    now["small0"] = b"rewritten"
    (root / "small0").write_bytes(now["small0"])
    with (root / "middle0").open("ab") as file:
        file.write(b"appended")
    now["middle0"] += b"appended"
    with (root / "large0").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"patched", 6 * MIB)
    now["large0"] = now["large0"][: 6 * MIB] + b"patched" + now["large0"][6 * MIB + 7 :]
    (root / "inline0").rename(root / "moved")
    now["moved"] = now.pop("inline0")
    (root / "small1").rename(root / "tiny1")
    now["tiny1"] = now.pop("small1")
    (root / "middle1").chmod(0o600)
    (root / "empty1").unlink()
    del now["empty1"]
    (root / "new").write_bytes(b"new")
    now["new"] = b"new"
    return now


def held(contents: S3Contents) -> dict[str, bytes]:
    """The whole bucket, without markers."""
    return {key: contents.read(key) for key in contents.listing() if not key.endswith("/")}


def shown(root: Path) -> dict[str, bytes]:
    """All that the mount shows, read through it."""
    return {name: (root / name).read_bytes() for name in sorted(os.listdir(root))}


def paid_uploads(contents: S3Contents) -> list[str]:
    """The keys of unfinished multipart uploads that hold parts, for which S3 takes money.

    One without parts is what a lost answer to CreateMultipartUpload leaves. It costs nothing, and
    whose it is cannot be told, so it is left alone.
    """
    client, bucket = contents.client, contents.bucket
    found = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [
        each["Key"]
        for each in found
        if client.list_parts(Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]).get("Parts")
    ]
