from __future__ import annotations

import pytest
import trio

from s3mount import metrics
from s3mount.config import StoreConfig, TimeoutSettings
from s3mount.errors import AccessDeniedError, NetworkError, NoSuchBucketError, StoreError
from s3mount.refs import ObjectHeaders
from s3mount.s3.client import S3Store
from s3mount.s3.store import Store
from tests.contract.subjects import Subject, set_credentials
from tests.servers import S3Server


@pytest.mark.parametrize("versioned", [False, True])
def test_the_bucket_says_what_it_is(subject: Subject, versioned: bool) -> None:
    async def body(store: Store) -> None:
        about = await store.check_bucket()
        assert about.versioning == ("enabled" if versioned else "off")
        if subject.is_real:
            assert about.name == subject.bucket(versioned)
            assert about.region == "us-east-1"
            assert about.endpoint_url == subject.config("").endpoint_url

    subject.run(body, versioned=versioned)


@pytest.mark.parametrize("versioned", [False, True])
def test_the_probe_finds_what_the_store_honours_and_leaves_nothing(
    subject: Subject, versioned: bool
) -> None:
    async def body(store: Store) -> None:
        found = await store.probe(".s3mount-probe")
        if subject.name == "given":
            # What any server honours is for the probe to find.
            assert not found.reason
        elif subject.name.startswith("ceph"):
            # Versions of Ceph differ in what they honour: boto3 asks the one that is here.
            asked = asked_for_conditions(subject, versioned)
            assert (found.if_match, found.if_absent) == asked
            assert not found.reason
            fixed = ("etag_is_md5", "content_md5", "markers", "marker_metadata", "lists_versions")
            assert all(getattr(found, name) is True for name in fixed)
        else:
            assert found == subject.able(versioned)
        assert (await store.list_page("")).objects == ()
        assert await store.list_uploads("") == []

    subject.run(body, versioned=versioned)
    if versioned and subject.server is not None:
        left = subject.server.boto3_client().list_object_versions(Bucket=subject.bucket(True))
        assert not left.get("Versions")
        assert not left.get("DeleteMarkers")


def asked_for_conditions(subject: Subject, versioned: bool) -> tuple[bool, bool]:
    """Whether the server refuses a PUT by If-Match, in either spelling, and by If-None-Match, as it must."""
    assert subject.server is not None
    client = subject.server.boto3_client()
    bucket = subject.bucket(versioned)

    def takes(**condition: str) -> bool:
        try:
            client.put_object(Bucket=bucket, Key="asked", Body=b"x", **condition)
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            return False
        return True

    etag = client.put_object(Bucket=bucket, Key="asked", Body=b"x")["ETag"]
    is_absent_honoured = not takes(IfNoneMatch="*")
    wrong = "0" * 32
    is_match_honoured = any(
        takes(IfMatch=true) and not takes(IfMatch=false)
        for true, false in ((etag, f'"{wrong}"'), (etag.strip('"'), wrong))
    )
    for each in client.list_object_versions(Bucket=bucket).get("Versions", ()):
        client.delete_object(Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])
    return is_match_honoured, is_absent_honoured


def test_every_number_is_in_the_table_of_metrics(subject: Subject) -> None:
    async def body(store: Store) -> None:
        await store.put("key", b"12345", ObjectHeaders())
        await store.get("key")
        numbers = await store.statistics()
        for name in numbers:
            assert metrics.find(name)
        assert numbers["requests"] >= 2
        assert numbers["requests_put"] == 1
        if subject.is_real:
            assert numbers["bytes_received"] >= 5
            assert numbers["bytes_sent"] >= 5
            assert numbers["requests_running"] == 0

    subject.run(body)


def refused(config: StoreConfig) -> StoreError:
    """The error with which ``check_bucket`` (or entering) ends."""

    async def main() -> StoreError:
        try:
            async with S3Store(config) as store:
                await store.check_bucket()
        except StoreError as error:
            return error
        raise AssertionError("nothing was refused")

    return trio.run(main)


def test_a_bucket_that_does_not_exist_is_named(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch, s3_server)
    config = StoreConfig(
        bucket="no-such-bucket-here", endpoint_url=s3_server.endpoint_url, path_style=True
    )
    error = refused(config)
    assert isinstance(error, NoSuchBucketError)
    assert str(error) == "the bucket 'no-such-bucket-here' does not exist"


def test_wrong_keys_are_told_apart(ceph: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch, ceph)
    config = StoreConfig(bucket="any-bucket", endpoint_url=ceph.endpoint_url, path_style=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = refused(config)
    assert isinstance(error, AccessDeniedError)
    assert "secret access key" in str(error)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    error = refused(config)
    assert isinstance(error, AccessDeniedError)
    assert "access key id" in str(error)


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    ceph: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ceph.https_url is None:
        pytest.skip("this server has no https")
    set_credentials(monkeypatch, ceph)
    config = StoreConfig(bucket="any-bucket", endpoint_url=ceph.https_url, path_style=True)
    error = refused(config)
    assert isinstance(error, NetworkError)
    assert not error.retryable
    assert "AWS_CA_BUNDLE" in str(error)
    unverified = StoreConfig(
        bucket="no-such-bucket-here",
        endpoint_url=ceph.https_url,
        path_style=True,
        verify_tls=False,
    )
    assert isinstance(refused(unverified), NoSuchBucketError)


def test_a_store_that_is_not_there_is_a_network_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    error = refused(
        StoreConfig(
            bucket="bucket",
            endpoint_url="http://127.0.0.1:1",
            region="us-east-1",
            path_style=True,
            timeouts=TimeoutSettings(tries=2),
        )
    )
    assert isinstance(error, NetworkError)
    assert error.retryable
    assert "127.0.0.1:1" in str(error)


def test_anonymous_requests_carry_no_signature(
    ceph: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch, ceph)
    bucket = ceph.make_bucket()
    client = ceph.boto3_client()
    client.put_object(Bucket=bucket, Key="public", Body=b"hello", ACL="public-read")
    client.put_object(Bucket=bucket, Key="private", Body=b"hello")
    config = StoreConfig(
        bucket=bucket, endpoint_url=ceph.endpoint_url, path_style=True, sign_requests=False
    )

    async def main() -> None:
        async with S3Store(config) as store:
            assert (await store.get("public"))[1] == b"hello"
            with pytest.raises(AccessDeniedError):
                await store.get("private")

    trio.run(main)
    if ceph.lasting:
        ceph.remove_bucket(bucket)
