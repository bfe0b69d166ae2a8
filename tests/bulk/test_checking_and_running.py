"""sum, verify, cancel, presign and run on real servers."""

from __future__ import annotations

import hashlib
import random
import urllib.request
from pathlib import Path

from awscrt import checksums

from tests.bulk.places import Places

MIB = 1 << 20


def test_sum_writes_and_checks_what_md5sum_would(places: Places) -> None:
    data = random.Random(2).randbytes(9 * MIB + 1)
    places.put("d/large", body=data)
    places.put("d/a\\b\n", body=b"odd")
    places.put("d/empty", body=b"")
    (places.folder / "file").write_bytes(data)
    lines = places.lines("sum", "{b}/d/", "file")
    where = f"s3://{places.bucket}/d"
    md5 = hashlib.md5(data).hexdigest()
    assert lines == [
        f"\\{hashlib.md5(b'odd').hexdigest()}  {where}/a\\\\b\\n",
        f"{hashlib.md5(b'').hexdigest()}  {where}/empty",
        f"{md5}  {where}/large",
        f"{md5}  file",
    ]
    told = "\n".join(lines).encode() + b"\n"
    assert len(places.lines("sum", "-c", "-", stdin=told)) == 4
    (places.folder / "file").write_bytes(b"other")
    done = places.run("sum", "-c", "-", stdin=told, status=1)
    assert done.stderr.decode().startswith("s3mount: sum file: its md5 is ")
    crc = f"{checksums.crc64nvme(data):016x}"
    assert places.lines("sum", "-a", "CRC64NVME", "{b}/d/large")[0].split()[0] == crc
    assert "is no digest" in places.error("sum", "-a", "md55", "file", status=9)


def test_verify_finds_every_difference_and_no_other(places: Places) -> None:
    data = random.Random(3).randbytes(11 * MIB)
    key = {"Bucket": places.bucket, "Key": "d/parts"}
    upload = places.client.create_multipart_upload(**key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), 5 * MIB), 1):
        body = data[start : start + 5 * MIB]
        sent = places.client.upload_part(**key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    places.client.complete_multipart_upload(
        **key, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    folder = places.folder / "d"
    (folder / "e").mkdir(parents=True)
    (folder / "parts").write_bytes(data)
    (folder / "e/f").write_bytes(b"same")
    places.put("d/e/f", body=b"same")
    # In one piece: the ETags differ and tell nothing, so that both are read.
    places.put("copy/parts", body=data)
    places.put("copy/e/f", body=b"same")
    assert len(places.lines("verify", "d", "{b}/d/")) == 2
    assert len(places.lines("verify", "{b}/d/", "{b}/copy/")) == 2
    places.put("d/e/f", body=b"else")
    places.put("d/more", body=b"")
    (folder / "e/only").write_bytes(b"")
    done = places.run("verify", "d", "{b}/d", status=1)
    faults = done.stderr.decode().splitlines()
    assert len(faults) == 4
    assert any("the bytes differ" in line for line in faults)
    assert any(line.endswith(f"s3://{places.bucket}/d/e/only is not there") for line in faults)
    assert any(line.endswith("d/more is not there") for line in faults)
    assert "nothing lies in" in places.error("verify", "{b}/x/", "{b}/y/", status=5)


def test_cancel_aborts_what_is_named_and_no_more(places: Places) -> None:
    for key in ("a", "a", "ab", "d/x", "d/y"):
        places.client.create_multipart_upload(Bucket=places.bucket, Key=key)

    def left() -> list[str]:
        told = places.client.list_multipart_uploads(Bucket=places.bucket)
        return sorted(each["Key"] for each in told.get("Uploads", ()))

    assert "end it with a slash" in places.error("cancel", "{b}", status=2)
    assert places.lines("cancel", "--older-than", "1h", "{b}/") == []
    assert len(places.lines("cancel", "-n", "{b}/")) == 5
    assert left() == ["a", "a", "ab", "d/x", "d/y"]
    places.run("cancel", "{b}/a")
    assert left() == ["ab", "d/x", "d/y"]
    places.run("cancel", "{b}/d/")
    assert left() == ["ab"]
    places.run("cancel", "--prefix", "{b}/a")
    assert left() == []


def test_a_presigned_url_reads_and_writes(places: Places) -> None:
    places.put("k ü", body=b"bytes")
    (url,) = places.lines("presign", "{b}/k ü")
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == b"bytes"
    (url,) = places.lines("presign", "--method", "PUT", "--expires", "5m", "{b}/new")
    request = urllib.request.Request(url, data=b"put", method="PUT", headers={"Content-Type": ""})
    with urllib.request.urlopen(request, timeout=30):
        assert places.client.get_object(Bucket=places.bucket, Key="new")["Body"].read() == b"put"
    assert "from 1s to 7d" in places.error("presign", "--expires", "8d", "{b}/k", status=2)


def test_run_does_each_line_and_tells_which_failed(places: Places) -> None:
    places.put("a#1", "b c", "d/1", "d/2", "keep", "new\nline")
    script = "\n".join(
        [
            "# a comment",
            "",
            f"rm s3://{places.bucket}/a#1",
            f"s3mount rm 's3://{places.bucket}/b c'",
            f"rm 's3://{places.bucket}/new\nline'",
            f"rm s3://{places.bucket}",
            f"cat s3://{places.bucket}/never",
            "mount x y",
            f"du s3://{places.bucket}/d/",
        ]
    )
    done = places.run("run", "-q", "-", stdin=script.encode(), status=1)
    said = done.stderr.decode().splitlines()
    assert any(line.startswith("s3mount: line 8: s3://") for line in said), said
    assert any(line.startswith("s3mount: line 9: 'mount' is no command") for line in said)
    assert any(line.startswith("s3mount: line 7: ") and "give -r" in line for line in said)
    assert b"2 objects" in done.stdout
    assert places.keys() == ["d/1", "d/2", "keep"]


def test_run_replays_a_dry_run(places: Places, tmp_path: Path) -> None:
    keys = ["d/a b", "d/it's", "d/new\nline", "d/x*", "dx"]
    places.put(*keys)
    plan = places.run("rm", "-r", "-n", "{b}/d/").stdout
    (tmp_path / "plan").write_bytes(plan)
    assert places.keys() == sorted(keys)
    told = places.told("run", str(tmp_path / "plan"))
    assert sum(each.get("operation") == "rm" for each in told) == 4
    assert places.keys() == ["dx"]
