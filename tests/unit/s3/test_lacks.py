from __future__ import annotations

from s3mount.s3.lacks import describe_lacks


def test_what_a_store_lacks_is_said() -> None:
    """In the log and by status, a line for each thing."""
    said = describe_lacks({"atomic": False, "content_md5": False, "markers": False})
    assert [line.split(",")[0].split(":")[0].split(";")[0] for line in said] == [
        "honours conditions",
        "verifies no checksum",
        "cannot hold the markers of folders",
    ]
    assert describe_lacks({"atomic": True, "checksum": "crc64nvme", "content_md5": False}) == []
