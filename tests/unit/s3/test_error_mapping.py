from __future__ import annotations

from typing import Any

import botocore.exceptions
import pytest

from s3mount import errors
from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    ChecksumError,
    ConflictError,
    DeadlineError,
    ExpiredCredentialsError,
    NetworkError,
    NoCredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    ServerFaultError,
    StoreError,
    ThrottledError,
    WrongRegionError,
)
from s3mount.s3.http.error_mapping import Refusal, from_boto, retry_after_s


def document(code: str, message: str = "", more: str = "") -> bytes:
    return (
        f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{message}</Message>"
        f"<RequestId>req-1</RequestId>{more}</Error>"
    ).encode()


def error(
    status: int,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    key: str = "a/key",
) -> StoreError:
    return Refusal(status, headers or {}, body).error(key=key, bucket="my-bucket")


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "NoSuchKey", NoSuchKeyError, "does not exist"),
        (404, "NoSuchVersion", NoSuchKeyError, "version"),
        (404, "NoSuchUpload", NoSuchKeyError, "multipart upload"),
        (404, "NoSuchBucket", NoSuchBucketError, "'my-bucket'"),
        (403, "AccessDenied", AccessDeniedError, "may not do this"),
        (403, "InvalidAccessKeyId", AccessDeniedError, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", AccessDeniedError, "secret access key"),
        (400, "ExpiredToken", ExpiredCredentialsError, "expired"),
        (403, "RequestTimeTooSkewed", AccessDeniedError, "clock"),
        (403, "InvalidObjectState", ArchivedError, "restore"),
        (412, "PreconditionFailed", PreconditionFailedError, "changed"),
        (409, "ConditionalRequestConflict", ConflictError, "under way"),
        (409, "OperationAborted", ConflictError, "OperationAborted"),
        (416, "InvalidRange", RangeError, "outside"),
        (400, "BadDigest", ChecksumError, "other bytes"),
        (400, "EntityTooLarge", RejectedError, "larger"),
        (400, "KeyTooLongError", RejectedError, "400 KeyTooLongError"),
        (403, "QuotaExceeded", AccessDeniedError, "quota"),
        (503, "SlowDown", ThrottledError, "fewer"),
        (503, "ServiceUnavailable", ThrottledError, "503"),
        (429, "TooManyRequests", ThrottledError, "429"),
        (500, "InternalError", ServerFaultError, "500 InternalError"),
        (400, "RequestTimeout", ServerFaultError, "RequestTimeout"),
        (200, "InternalError", ServerFaultError, "InternalError"),
        (200, "SlowDown", ThrottledError, "fewer"),
        (501, "NotImplemented", RejectedError, "NotImplemented"),
        (409, "BucketNotEmpty", RejectedError, "BucketNotEmpty"),
    ],
)
def test_codes_become_what_a_caller_can_do(
    status: int, code: str, kind: type[StoreError], words: str
) -> None:
    raised = error(status, document(code))
    assert type(raised) is kind
    assert words in str(raised)
    assert "\n" not in str(raised)
    assert (raised.key, raised.status, raised.code) == ("a/key", status, code)
    assert raised.request_id == "req-1"


@pytest.mark.parametrize(
    ("status", "key", "kind"),
    [
        (404, "key", NoSuchKeyError),
        (404, "", NoSuchBucketError),
        (403, "key", AccessDeniedError),
        (401, "key", AccessDeniedError),
        (400, "key", RejectedError),
        (405, "key", RejectedError),
        (409, "key", ConflictError),
        (412, "key", PreconditionFailedError),
        (416, "key", RangeError),
        (429, "key", ThrottledError),
        (500, "key", ServerFaultError),
        (502, "key", ServerFaultError),
        (503, "key", ThrottledError),
    ],
)
def test_answers_without_a_document_are_told_by_their_status(
    status: int, key: str, kind: type[StoreError]
) -> None:
    assert type(error(status, key=key)) is kind
    assert type(error(status, b"<html>busy</html>", key=key)) is kind


def test_a_bucket_elsewhere_is_named_with_its_region() -> None:
    elsewhere = [
        error(301, document("PermanentRedirect", more="<Region>eu-west-1</Region>")),
        error(301, b"", {"x-amz-bucket-region": "eu-west-1"}),
        error(400, b"", {"x-amz-bucket-region": "eu-west-1"}),
        error(
            400,
            document(
                "AuthorizationHeaderMalformed",
                "the region 'us-east-1' is wrong; expecting 'eu-west-1'",
                "<Region>eu-west-1</Region>",
            ),
        ),
    ]
    for raised in elsewhere:
        assert type(raised) is WrongRegionError
        assert str(raised) == "the bucket 'my-bucket' lives in region eu-west-1; use --region"
    assert type(error(301)) is WrongRegionError
    assert type(error(400, document("AuthorizationHeaderMalformed"))) is AccessDeniedError


def test_a_version_id_that_no_version_can_have_does_not_exist() -> None:
    raised = error(400, document("InvalidArgument", "Invalid version id specified"))
    assert type(raised) is NoSuchKeyError
    assert type(error(400, document("InvalidArgument", "something"))) is RejectedError


def test_documents_that_are_damaged_do_not_hide_the_status() -> None:
    assert type(error(503, b"<Error><Code>Slow")) is ThrottledError
    assert type(error(404, b"<Error><Code>NoSuchKey</Code><Key>a\x01</Key></Error>")) is (
        NoSuchKeyError
    )


def test_pauses_that_a_store_asks_for() -> None:
    date = "Sat, 21 Nov 2026 01:24:01 GMT"
    assert retry_after_s({}) is None
    assert retry_after_s({"retry-after": "12"}) == 12
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({"retry-after": "\u00b2"}) is None
    assert retry_after_s({"retry-after": "9" * 5000}) is None
    later = "Sat, 21 Nov 2026 01:24:31 GMT"
    assert retry_after_s({"retry-after": later, "date": date}) == 30
    assert retry_after_s({"retry-after": date, "date": later}) == 0
    assert error(503, b"", {"retry-after": "7"}).retry_after_s == 7


@pytest.mark.parametrize(
    ("raised", "kind", "retryable"),
    [
        (botocore.exceptions.NoCredentialsError(), NoCredentialsError, False),
        (
            botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="y"),
            NoCredentialsError,
            False,
        ),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="http://x", error="refused"),
            NetworkError,
            True,
        ),
        (
            botocore.exceptions.ConnectTimeoutError(endpoint_url="http://x", error=""),
            NetworkError,
            True,
        ),
        (
            botocore.exceptions.ReadTimeoutError(endpoint_url="http://x", error=""),
            DeadlineError,
            True,
        ),
        (
            botocore.exceptions.SSLError(
                endpoint_url="https://x", error=Exception("CERTIFICATE_VERIFY_FAILED")
            ),
            NetworkError,
            False,
        ),
        (botocore.parsers.ResponseParserError("no XML"), ServerFaultError, True),
        (ValueError("what?"), RejectedError, False),
    ],
)
def test_what_boto3_raises_is_mapped(
    raised: Exception, kind: type[StoreError], retryable: bool
) -> None:
    mapped = from_boto(raised, key="k", bucket="b")
    assert type(mapped) is kind
    assert mapped.retryable is retryable
    assert "\n" not in str(mapped)


def test_what_boto3_was_told_is_mapped_by_its_code() -> None:
    answer: Any = {
        "Error": {"Code": "NoSuchBucket", "Message": "The specified bucket does not exist"},
        "ResponseMetadata": {
            "HTTPStatusCode": 404,
            "HTTPHeaders": {"x-amz-request-id": "r"},
        },
    }
    raised = from_boto(botocore.exceptions.ClientError(answer, "ListObjects"), key="", bucket="b")
    assert type(raised) is NoSuchBucketError
    assert raised.request_id == "r"
    answer = {"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": {}}
    answer["ResponseMetadata"] = {"HTTPStatusCode": 403, "HTTPHeaders": {}}
    raised = from_boto(botocore.exceptions.ClientError(answer, "HeadBucket"), key="", bucket="b")
    assert type(raised) is AccessDeniedError
    assert raised.code == ""


def test_every_mapped_error_crosses_the_engines_boundary() -> None:
    from s3mount.s3.http import error_mapping

    kinds = {*error_mapping._BY_CODE.values(), *error_mapping._BY_STATUS.values()}
    for kind in kinds:
        assert vars(errors)[kind.__name__] is kind
