"""The options that say what new objects get beside their bytes, and the one value that they make."""

from __future__ import annotations

from typing import Any

import click

from s3mount.cli.options import F, option
from s3mount.refs import ObjectHeaders

CANNED_ACLS = (
    *("private", "public-read", "public-read-write", "authenticated-read"),
    *("aws-exec-read", "bucket-owner-read", "bucket-owner-full-control"),
)

_OPTIONS = (
    option("--storage-class", help="Of new objects, such as STANDARD_IA."),
    option(
        "--sse",
        type=click.Choice(["AES256", "aws:kms", "aws:kms:dsse"]),
        help="Encryption of new objects.  [default: the bucket's]",
    ),
    option("--sse-kms-key-id", metavar="KEY", help="KMS key for it; means --sse aws:kms."),
    option("--bucket-key", is_flag=True, help="Use an S3 Bucket Key with it; means --sse aws:kms."),
    option("--acl", type=click.Choice(CANNED_ACLS), help="Canned ACL of new objects."),
)


def object_options(command: F) -> F:
    """Give a command the options that say what new objects get."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def new_objects(values: dict[str, Any]) -> ObjectHeaders:
    """What they make: ``StoreConfig.new_objects``, which checks the values together."""
    implied = "aws:kms" if values["sse_kms_key_id"] or values["bucket_key"] else None
    return ObjectHeaders(
        storage_class=values["storage_class"],
        encryption=values["sse"] or implied,
        kms_key_id=values["sse_kms_key_id"],
        bucket_key="true" if values["bucket_key"] else None,
        acl={"x-amz-acl": values["acl"]} if values["acl"] else None,
    )
