from __future__ import annotations

from collections.abc import Iterator

import botocore.exceptions
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from s3mount.config import StoreConfig
from s3mount.errors import WrongRegionError
from s3mount.s3 import boto_session
from s3mount.s3.http.resolve import S3Client, make_client, make_session


class NoBody:
    def stream(self, **_: object) -> Iterator[bytes]:
        return iter(())


def client_that_hears(status: int, region: str, config: StoreConfig) -> S3Client:
    """boto3's client, whose HeadBucket is answered here."""

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        headers = HTTPHeaders()
        if region:
            headers["x-amz-bucket-region"] = region
        return AWSResponse(request.url, status, headers, NoBody())

    client = make_client(make_session(config), config, config.region)
    client.meta.events.register("before-send.s3.HeadBucket", answer)
    return client


@pytest.mark.parametrize("status", [200, 403])
def test_the_buckets_own_region_is_used(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    config = StoreConfig(bucket="my-bucket")
    client = client_that_hears(status, "ap-south-1", config)
    found = boto_session._in_bucket_region(make_session(config), client, config)
    assert found.meta.region_name == "ap-south-1"
    same = client_that_hears(status, "us-east-1", config)
    assert boto_session._in_bucket_region(make_session(config), same, config) is same
    silent = client_that_hears(status, "", config)
    assert boto_session._in_bucket_region(make_session(config), silent, config) is silent


def test_a_region_that_the_user_named_wrongly_is_an_error_that_names_the_right_one() -> None:
    config = StoreConfig(bucket="my-bucket", region="eu-west-1")
    client = client_that_hears(301, "ap-south-1", config)
    with pytest.raises(WrongRegionError, match="--region ap-south-1"):
        boto_session._in_bucket_region(make_session(config), client, config)


def test_without_a_network_the_region_is_found_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    config = StoreConfig(bucket="my-bucket")

    def unreachable(request: AWSPreparedRequest, **_: object) -> None:
        raise botocore.exceptions.EndpointConnectionError(endpoint_url=request.url)

    client = make_client(make_session(config), config, None)
    client.meta.events.register("before-send.s3.HeadBucket", unreachable)
    assert boto_session._in_bucket_region(make_session(config), client, config) is client


def test_other_endpoints_are_not_asked_for_a_region() -> None:
    config = StoreConfig(bucket="my-bucket", endpoint_url="http://127.0.0.1:1", region="r")
    client = make_client(make_session(config), config, config.region)
    assert boto_session._in_bucket_region(make_session(config), client, config) is client
