"""Real S3 servers for tests: started when first asked for, ended with the run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where a running server answers, and with which keys. Buckets are addressed by path.

    ``lasting`` servers were there before the run and stay; what tests make there must be removed.
    """

    name: str
    endpoint_url: str
    access_key: str
    secret_key: str
    https_url: str | None = None
    ca_bundle: str | None = None
    region: str = "us-east-1"
    lasting: bool = False

    def boto3_client(self, *, https: bool = False, **settings: Any) -> Any:
        """A boto3 S3 client: the tests' own eyes, independent of s3mount's client.

        ``settings`` go to botocore's Config.
        """
        config: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            # Ceph 16 answers 411 to the trailing checksums that boto3 would otherwise send over TLS.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "max_pool_connections": 32,
            "connect_timeout": 10,
            "read_timeout": 60,
        }
        return boto3.client(
            "s3",
            endpoint_url=self.https_url if https else self.endpoint_url,
            verify=self.ca_bundle if https else None,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**(config | settings)),
        )

    def make_bucket(self, *, versioned: bool = False) -> str:
        """Make a bucket with a name of its own; the name."""
        client = self.boto3_client()
        name = f"test-{uuid.uuid4().hex[:16]}"
        client.create_bucket(Bucket=name)
        if versioned and not self._keeps_versions(client, name):
            self.remove_bucket(name)
            pytest.skip(f"{self.name} keeps no versions")
        return name

    @staticmethod
    def _keeps_versions(client: Any, bucket: str) -> bool:
        try:
            client.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
            )
            return bool(client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled")
        except ClientError:
            return False

    def enable_acls(self, name: str) -> None:
        """Let a bucket heed ACLs, where the server knows that they can be disabled."""
        # Ceph 16 takes the request for something else, and heeds ACLs anyway.
        with contextlib.suppress(ClientError):
            self.boto3_client().put_bucket_ownership_controls(
                Bucket=name, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
            )

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket with everything in it: unfinished uploads, versions, objects."""
        client = self.boto3_client()
        try:
            client.list_object_versions(Bucket=name)
        except ClientError:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for entry in page.get("Contents", []):
                    client.delete_object(Bucket=name, Key=entry["Key"])
            client.delete_bucket(Bucket=name)
            return
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
            for upload in page.get("Uploads", []):
                # A mount that was just ended may have been about to do so itself.
                with contextlib.suppress(client.exceptions.NoSuchUpload):
                    client.abort_multipart_upload(
                        Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        # Listed anew each time: Ceph 16 leaves some out behind a version that is gone.
        while True:
            page = client.list_object_versions(Bucket=name)
            doomed = []
            for entry in page.get("Versions", []) + page.get("DeleteMarkers", []):
                if entry["Key"].isprintable():
                    doomed.append({"Key": entry["Key"], "VersionId": entry["VersionId"]})
                else:  # which the XML of DeleteObjects may not hold
                    client.delete_object(
                        Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"]
                    )
            if doomed:
                client.delete_objects(Bucket=name, Delete={"Objects": doomed, "Quiet": True})
            if not page["IsTruncated"]:
                break
        client.delete_bucket(Bucket=name)

    def environment(self) -> dict[str, str]:
        """This process's environment with this server's credentials, for commands under test."""
        cleared = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        given = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        if self.ca_bundle:
            given["AWS_CA_BUNDLE"] = self.ca_bundle
        return cleared | given
