"""boto3's session, client, address and credentials for one configuration."""

from __future__ import annotations

import datetime
import logging
from typing import NamedTuple

import boto3
import botocore.exceptions
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import RefreshableCredentials

from s3mount.config import StoreConfig
from s3mount.errors import AccessDeniedError, S3MountError, StoreError, WrongRegionError
from s3mount.s3.http.error_mapping import from_boto
from s3mount.s3.http.resolve import Address, S3Client, make_client, make_session, resolve
from s3mount.s3.http.signing import Anonymous

_log = logging.getLogger(__name__)

SESSION_RENEWED_S = 120
"""A session of S3 Express lasts 300 s: with less than this left another one is begun, by one request."""
SESSION_MUST_RENEW_S = 30
"""With less than this left every request waits for it."""


class Binding(NamedTuple):
    """All that is needed to talk to the bucket. ``credentials`` is ``None`` for unsigned requests.

    ``account`` are the credentials that sessions are begun with, where ``credentials`` are those of a session.
    """

    client: S3Client
    address: Address
    credentials: BotocoreCredentials | None
    account: BotocoreCredentials | None
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
    credentials = account = None
    if not isinstance(address.signer, Anonymous):
        credentials = session._session.get_credentials()
        if address.account_signer is not None:
            account, credentials = credentials, _express_session(client, config)
    options = client.meta.config.s3 or {}
    sign_payload = bool(options.get("payload_signing_enabled"))
    return Binding(client, address, credentials, account, sign_payload)


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


_PAST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def _express_session(client: S3Client, config: StoreConfig) -> BotocoreCredentials:
    """Credentials of an S3 Express session, begun when first needed and renewed (they last five minutes).

    What objects are encrypted with is the session's, and may not be another in a request (CreateSession).
    Asking for them raises the S3MountError that tells why there is no session.
    """
    new = config.new_objects
    encryption: dict[str, object] = {
        "ServerSideEncryption": new.encryption,
        "SSEKMSKeyId": new.kms_key_id,
        "BucketKeyEnabled": True if new.bucket_key == "true" else None,
    }
    wanted = {name: value for name, value in encryption.items() if value is not None}

    def create() -> dict[str, str]:
        try:
            made = client.create_session(Bucket=config.bucket, **wanted)["Credentials"]
        except Exception as error:
            # boto3 raises its own types, and those of what it is built on.
            raise _about_session(from_boto(error, key="", bucket=config.bucket)) from error
        return {
            "access_key": made["AccessKeyId"],
            "secret_key": made["SecretAccessKey"],
            "token": made["SessionToken"],
            "expiry_time": made["Expiration"].isoformat(),
        }

    return RefreshableCredentials(
        "none",
        "none",
        "none",
        expiry_time=_PAST,
        refresh_using=create,
        method="s3express",
        advisory_timeout=SESSION_RENEWED_S,
        mandatory_timeout=SESSION_MUST_RENEW_S,
    )


def _about_session(error: StoreError) -> StoreError:
    """``error`` of a CreateSession, in words that say what was refused."""
    if isinstance(error, AccessDeniedError) and error.code in ("", "AccessDenied"):
        about = (
            "these credentials may not begin a session (s3express:CreateSession) with the bucket"
        )
        return AccessDeniedError(about, status=error.status, code=error.code)
    return error
