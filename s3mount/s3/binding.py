"""Binds a configuration to boto3's session, client, address and credentials."""

from __future__ import annotations

import logging
from typing import NamedTuple

import boto3
import botocore.exceptions
from botocore.auth import S3ExpressAuth
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import RefreshableCredentials

from s3mount.config import StoreConfig
from s3mount.errors import S3MountError, WrongRegionError
from s3mount.s3.mapping import from_boto
from s3mount.s3.resolve import Address, S3Client, make_client, make_session, resolve
from s3mount.s3.signing import Anonymous, BotocoreSigner

_log = logging.getLogger(__name__)


class Binding(NamedTuple):
    """All that is needed to talk to the bucket. ``credentials`` is ``None`` for unsigned requests."""

    client: S3Client
    address: Address
    credentials: BotocoreCredentials | None
    sign_payload: bool


def bind(config: StoreConfig) -> Binding:
    """Ask boto3 for everything; blocks, with network calls where credentials or AWS regions need them.

    Raises UsageError, NoCredentialsError, WrongRegionError, NetworkError.
    """
    try:
        return _bind(config)
    except S3MountError:
        raise
    except Exception as error:
        # boto3 raises its own types, and those of what it is built on.
        raise from_boto(error, key="", bucket=config.bucket) from error


def _bind(config: StoreConfig) -> Binding:
    session = make_session(config)
    client = make_client(session, config, config.region)
    if config.endpoint_url is None:
        client = _in_bucket_region(session, client, config)
    address = resolve(session, client, config)
    credentials = None
    if not isinstance(address.signer, Anonymous):
        credentials = session._session.get_credentials()
        if isinstance(address.signer, BotocoreSigner) and address.signer.uses(S3ExpressAuth):
            credentials = _express_session(client, config.bucket)
    options = client.meta.config.s3 or {}
    return Binding(client, address, credentials, bool(options.get("payload_signing_enabled")))


def _in_bucket_region(session: boto3.Session, client: S3Client, config: StoreConfig) -> S3Client:
    """A client for the region where AWS keeps the bucket, unless the user insists on another.

    Raises WrongRegionError when the user named one and it is wrong.
    """
    endpoint = client.meta.endpoint_url
    if "amazonaws" not in endpoint or config.bucket.startswith("arn:"):
        return client
    found = _bucket_region(client, config.bucket)
    here = client.meta.region_name
    if not found or found == ("us-east-1" if here in (None, "aws-global") else here):
        return client
    if config.region:
        raise WrongRegionError(
            f"the bucket {config.bucket!r} lives in region {found}, not in {config.region}; "
            f"use --region {found}",
            code="PermanentRedirect",
            status=301,
        )
    return make_client(session, config, found)


def _bucket_region(client: S3Client, bucket: str) -> str:
    """The region that HeadBucket names, also when it is refused; empty when it names none.

    Also empty while the network is down: the first request that meets the wrong region asks again.
    """
    try:
        answer = client.head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        answer = error.response
    except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError) as error:
        _log.info("the bucket's region could not be asked for: %s", error)
        return ""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region", ""))


def _express_session(client: S3Client, bucket: str) -> BotocoreCredentials:
    """Credentials of an S3 Express session, renewed by CreateSession (they last five minutes)."""

    def create() -> dict[str, str]:
        made = client.create_session(Bucket=bucket)["Credentials"]
        return {
            "access_key": made["AccessKeyId"],
            "secret_key": made["SecretAccessKey"],
            "token": made["SessionToken"],
            "expiry_time": made["Expiration"].isoformat(),
        }

    return RefreshableCredentials.create_from_metadata(
        create(),
        refresh_using=create,
        method="s3express",
        advisory_timeout=120,
        mandatory_timeout=30,
    )
