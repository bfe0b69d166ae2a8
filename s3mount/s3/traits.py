"""What was learned about one store's habits, by its answers."""

from __future__ import annotations

import msgspec

from s3mount.refs import Capabilities


class Traits(msgspec.Struct):
    """Learned while working and by the probe; ``None`` means not yet known.

    ``echoes_checksums``: it verifies ``x-amz-checksum-crc64nvme`` and says so by echoing it. Where it
    does not, Content-MD5 is sent, which all stores verify.
    ``etag_is_md5``: the ETag of a single PUT is the MD5 of its bytes, unless its answer says that it is encrypted.
    ``if_match_quoted``: how If-Match on a PUT must be spelt. RFC 9110 has quotes; Ceph 16 refuses
    every quoted one.
    ``unusable``: conditions that are refused even where they hold, such as "PUT If-Match" (Ceph 16 with
    versions, Swift); they are not sent.
    ``versioned``: answers were seen that name a version.
    ``keeps_deleted``: versioning is enabled, so that a deletion destroys nothing.
    ``content_md5``: a wrong Content-MD5 is refused. ``copied_checksums``: parts made by UploadPartCopy have
    checksums. ``lists_versions``: ListObjectVersions is there.
    ``counts_tags``: HEAD tells how many tags an object has. ``has_tags``: it knows tags, and they may be read.
    ``has_acls``: the bucket has ACLs enabled, and they may be read.
    ``copies_keyed``: CopyObject heeds keys for SSE-C.
    ``atomic``: of several conditional PUTs at once one wins. ``verifies_checksums``: a wrong one is refused.
    The rest: whether the condition is refused with 412 when it does not hold, and only then.
    """

    echoes_checksums: bool | None = None
    etag_is_md5: bool | None = None
    if_match_quoted: bool | None = None
    unusable: set[str] = msgspec.field(default_factory=set)
    versioned: bool = False
    if_match: bool | None = None
    if_absent: bool | None = None
    complete_condition: bool | None = None
    copy_condition: bool | None = None
    copy_source_condition: bool | None = None
    delete_condition: bool | None = None
    keeps_deleted: bool = False
    content_md5: bool | None = None
    copied_checksums: bool | None = None
    lists_versions: bool | None = None
    counts_tags: bool | None = None
    has_tags: bool = True
    has_acls: bool | None = None
    atomic: bool | None = None
    verifies_checksums: bool | None = None
    copies_keyed: bool | None = None

    def adopt(self, known: Capabilities) -> None:
        """Take over what an earlier probe of the same bucket found."""
        self.if_match = known.if_match
        self.if_absent = known.if_absent
        self.complete_condition = known.complete_condition
        self.copy_condition = known.copy_condition
        self.copy_source_condition = known.copy_source_condition
        self.delete_condition = known.delete_condition
        self.unusable = set(known.unusable)
        self.content_md5 = known.content_md5
        self.copied_checksums = known.copied_checksums
        self.lists_versions = known.lists_versions
        self.atomic = known.atomic
        if known.etag_is_md5 is not None:
            self.etag_is_md5 = known.etag_is_md5
        self.counts_tags = known.counts_tags
        if known.if_match is not None:
            self.verifies_checksums = known.checksum is not None
            self.echoes_checksums = known.checksum == "crc64nvme"
