"""What is asked of boto3 itself, without an engine: an account's buckets, URLs for others, restores from archives."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from botocore.config import Config

from s3mount.config import StoreConfig
from s3mount.errors import S3MountError
from s3mount.refs import Key, VersionId
from s3mount.s3.boto_session import bind
from s3mount.s3.http.error_mapping import from_boto
from s3mount.s3.http.resolve import make_client, make_session

NAMES_MAX = 200
"""More than these help nobody who types."""
PRESIGNED_S_MAX = 7 * 24 * 3600
"""A signature of version 4 is believed no longer."""
RESTORE_TRIES = 5


class Bucket(NamedTuple):
    """A bucket of the account. ``created_ns`` is 0 where the store does not tell."""

    name: str
    created_ns: int


class Account(NamedTuple):
    """Who asks, where, and by which way, in words; nothing secret."""

    credentials: str
    endpoint: str
    proxy: str


def describe_account(config: StoreConfig) -> Account:
    """Where credentials were found and the bucket's address. Blocks; asks AWS for the bucket's region.

    Raises NoCredentialsError, UsageError, WrongRegionError, NetworkError.
    """
    bound = bind(config)
    found = bound.account or bound.credentials
    told = "none: requests are not signed"
    if found is not None:
        key = found.get_frozen_credentials().access_key or ""
        told = f"{key[:4]}{'*' * max(len(key) - 4, 0)}, from {found.method}"
    address = bound.address
    proxy = address.origin.proxy
    return Account(
        told,
        f"{address.base_url}{address.path}, region {address.region}",
        "none" if proxy is None else f"{proxy.host}:{proxy.port}",
    )


def list_buckets(config: StoreConfig) -> list[Bucket]:
    """All buckets that these credentials own, by name. Blocks. Raises StoreError, UsageError."""
    try:
        client = make_client(make_session(config), config, config.region)
        found: list[Bucket] = []
        token: str | None = None
        while True:
            page = client.list_buckets(**({"ContinuationToken": token} if token else {}))
            for each in page.get("Buckets", ()):
                created = each.get("CreationDate")
                found.append(
                    Bucket(each["Name"], int(created.timestamp()) * 10**9 if created else 0)
                )
            token, before = page.get("ContinuationToken"), token
            if not token or token == before:
                return sorted(found)
    except S3MountError:
        raise
    except Exception as error:
        # boto3 raises its own types, and those of what it is built on.
        raise from_boto(error, key="", bucket=config.bucket) from error


def list_names(config: StoreConfig, beginning: str, *, timeout_s: float) -> list[str]:
    """Keys and folders that begin so, one page of them; the account's buckets where ``config`` names none. Blocks.

    Gives up after about ``timeout_s``. Raises StoreError, UsageError.
    """
    quick = msgspec.structs.replace(
        config, timeouts=msgspec.structs.replace(config.timeouts, connect_s=timeout_s)
    )
    try:
        client = make_client(make_session(quick), quick, quick.region, read_timeout_s=timeout_s)
        if not config.bucket:
            return [each["Name"] for each in client.list_buckets().get("Buckets", ())]
        page = client.list_objects_v2(
            Bucket=config.bucket, Prefix=beginning, Delimiter="/", MaxKeys=NAMES_MAX
        )
    except S3MountError:
        raise
    except Exception as error:
        # boto3 raises its own types, and those of what it is built on.
        raise from_boto(error, key="", bucket=config.bucket) from error
    folders = [each["Prefix"] for each in page.get("CommonPrefixes", ())]
    return sorted([*folders, *(each["Key"] for each in page.get("Contents", ()))])


def presigned_url(
    config: StoreConfig, key: Key, *, method: str, expires_s: int, version_id: VersionId | None
) -> str:
    """A URL by which whoever has it may ``GET`` or ``PUT`` the object for ``expires_s``. Blocks.

    Nothing is asked of the store, but for the bucket's region on AWS. Raises StoreError, UsageError.
    """
    bound = bind(config).client
    # boto3 would take version 2 for stores other than AWS, which not all know.
    client = make_session(config).client(
        "s3",
        region_name=bound.meta.region_name,
        endpoint_url=config.endpoint_url,
        config=bound.meta.config.merge(Config(signature_version="s3v4")),
    )
    place = {"Bucket": config.bucket, "Key": key}
    if version_id is not None:
        place["VersionId"] = version_id
    try:
        url: str = client.generate_presigned_url(
            "put_object" if method == "PUT" else "get_object",
            Params=place,
            ExpiresIn=expires_s,
            HttpMethod=method,
        )
    except Exception as error:
        # boto3 raises its own types, and those of what it is built on.
        raise from_boto(error, key=key, bucket=config.bucket) from error
    return url


class Restorer:
    """Asks for archived objects of one bucket. Calls block, and may be made from several threads at once.

    Making one raises what ``bind`` does: NoCredentialsError, UsageError, WrongRegionError, NetworkError.
    """

    def __init__(self, config: StoreConfig) -> None:
        region = bind(config).client.meta.region_name
        self._config = config
        # Any: the types of boto3 know no dictionary that is made step by step.
        self._client: Any = make_client(make_session(config), config, region, tries=RESTORE_TRIES)

    def restore(self, key: Key, *, days: int | None, tier: str) -> None:
        """RestoreObject, for ``days`` (``None`` for INTELLIGENT_TIERING, where it stays). Raises StoreError.

        Repeatable: what is being restored goes on, what is restored stays for ``days`` from now.
        """
        wanted: dict[str, Any] = {"GlacierJobParameters": {"Tier": tier}}
        if days is not None:
            wanted["Days"] = days
        payer = {"RequestPayer": "requester"} if self._config.request_payer else {}
        try:
            self._client.restore_object(
                Bucket=self._config.bucket, Key=key, RestoreRequest=wanted, **payer
            )
        except Exception as error:
            # boto3 raises its own types, and those of what it is built on.
            found = from_boto(error, key=key, bucket=self._config.bucket)
            if found.code != "RestoreAlreadyInProgress":
                raise found from error
