"""Maps what S3 and boto3 say to our errors: one clear line, and what a person can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import botocore.exceptions
import botocore.parsers

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
from s3mount.logs import without_secrets
from s3mount.s3.documents import parse_xml
from s3mount.s3.headers import http_date_ns, whole_number

_BY_CODE: dict[str, type[StoreError]] = {
    "NoSuchKey": NoSuchKeyError,
    "NoSuchVersion": NoSuchKeyError,
    "NoSuchUpload": NoSuchKeyError,
    "NoSuchBucket": NoSuchBucketError,
    "AccessDenied": AccessDeniedError,
    "AllAccessDisabled": AccessDeniedError,
    "AccountProblem": AccessDeniedError,
    "InvalidAccessKeyId": AccessDeniedError,
    "SignatureDoesNotMatch": AccessDeniedError,
    "InvalidToken": AccessDeniedError,
    "ExpiredToken": ExpiredCredentialsError,
    "ExpiredTokenException": ExpiredCredentialsError,
    "TokenRefreshRequired": ExpiredCredentialsError,
    "RequestTimeTooSkewed": AccessDeniedError,
    "InvalidSecurity": AccessDeniedError,
    "NotSignedUp": AccessDeniedError,
    "InvalidObjectState": ArchivedError,
    "PermanentRedirect": WrongRegionError,
    "TemporaryRedirect": WrongRegionError,
    "AuthorizationHeaderMalformed": WrongRegionError,
    "IllegalLocationConstraintException": WrongRegionError,
    "PreconditionFailed": PreconditionFailedError,
    "ConditionalRequestConflict": ConflictError,
    "OperationAborted": ConflictError,
    "InvalidRange": RangeError,
    "BadDigest": ChecksumError,
    "InvalidDigest": ChecksumError,
    "XAmzContentSHA256Mismatch": ChecksumError,
    "XAmzContentChecksumMismatch": ChecksumError,
    "IncompleteBody": ServerFaultError,
    "RequestTimeout": ServerFaultError,
    "InternalError": ServerFaultError,
    "SlowDown": ThrottledError,
    "SlowDownRead": ThrottledError,
    "SlowDownWrite": ThrottledError,
    "ServiceUnavailable": ThrottledError,
    "Throttling": ThrottledError,
    "ThrottlingException": ThrottledError,
    "RequestLimitExceeded": ThrottledError,
    "TooManyRequests": ThrottledError,
    "BandwidthLimitExceeded": ThrottledError,
}
_BY_STATUS: dict[int, type[StoreError]] = {
    301: WrongRegionError,
    307: WrongRegionError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NoSuchKeyError,
    408: ServerFaultError,
    409: ConflictError,
    412: PreconditionFailedError,
    416: RangeError,
    429: ThrottledError,
    501: RejectedError,
    503: ThrottledError,
}
_LINES: dict[str, str] = {
    "NoSuchKey": "the object does not exist",
    "NoSuchVersion": "this version of the object does not exist",
    "NoSuchUpload": "the multipart upload does not exist any more",
    "NoSuchBucket": "the bucket {bucket!r} does not exist",
    "AccessDenied": "these credentials may not do this",
    "InvalidAccessKeyId": "the store does not know this access key id; "
    "check AWS_ACCESS_KEY_ID or the profile, and the endpoint",
    "SignatureDoesNotMatch": "the signature is wrong; check the secret access key",
    "InvalidToken": "the session token is not valid; log in again",
    "ExpiredToken": "the session token has expired; log in again",
    "ExpiredTokenException": "the session token has expired; log in again",
    "TokenRefreshRequired": "the session token has expired; log in again",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's; set the clock",
    "InvalidObjectState": "the object is archived: s3mount restore brings it back for some days",
    "PreconditionFailed": "somebody else changed the object",
    "ConditionalRequestConflict": "another conditional write of the object is under way",
    "InvalidRange": "the range lies outside the object",
    "BadDigest": "the store received other bytes than were sent",
    "SlowDown": "the store asks for fewer requests",
    "EntityTooLarge": "the object is larger than the store takes",
    "EntityTooSmall": "a part is smaller than the store takes",
    "QuotaExceeded": "the store's quota is used up",
    "InvalidBucketName": "{bucket!r} is no valid bucket name",
}


_ACTIONS = {
    "head": "s3:GetObject",
    "get": "s3:GetObject",
    "fetch": "s3:GetObject",
    "attributes": "s3:GetObjectAttributes",
    "put": "s3:PutObject",
    "probe": "s3:PutObject",
    "copy": "s3:PutObject, and s3:GetObject of what is copied,",
    "rename": "s3express:CreateSession for writing",
    "append": "s3express:CreateSession for writing",
    "create_multipart": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "upload_part_copy": "s3:PutObject, and s3:GetObject of what is copied,",
    "complete_multipart": "s3:PutObject",
    "abort_multipart": "s3:AbortMultipartUpload",
    "list_parts": "s3:ListMultipartUploadParts",
    "list_uploads": "s3:ListBucketMultipartUploads",
    "delete": "s3:DeleteObject",
    "delete_many": "s3:DeleteObject",
    "list": "s3:ListBucket",
    "check_bucket": "s3:ListBucket",
    "list_versions": "s3:ListBucketVersions",
    "lifecycle": "s3:GetLifecycleConfiguration",
}
"""What a policy must allow for a request of each kind (Service Authorization Reference, Amazon S3)."""


def action_denied(kind: str, key: str, query: str, bucket: str, *, is_signed: bool) -> str:
    """What was refused: the action, on what, and whether somebody had signed for it.

    >>> action_denied("put", "a/b", "", "data", is_signed=True)
    "s3:PutObject for the key 'a/b' in the bucket 'data'"
    >>> action_denied("list", "", "list-type=2&prefix=mine%2F", "data", is_signed=False)
    "s3:ListBucket for the prefix 'mine/' in the bucket 'data'; the request was not signed"
    """
    prefix = dict(parse_qsl(query)).get("prefix", "")
    about = f" for the key {key!r}" if key else f" for the prefix {prefix!r}" if prefix else ""
    signed = "" if is_signed else "; the request was not signed"
    action = _ACTIONS.get(kind, "the request")
    return f"{action}{about} in the bucket {bucket!r}{signed}"


class Refusal:
    """An answer that is no success, taken apart."""

    __slots__ = ("code", "deleted", "message", "region", "request_id", "retry_after_s", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.code = ""
        self.message = ""
        self.deleted = headers.get("x-amz-delete-marker") == "true"
        self.region = headers.get("x-amz-bucket-region", "")
        self.request_id = headers.get("x-amz-request-id", "")
        self.retry_after_s = retry_after_s(headers)
        root = parse_error(body)
        if root is not None:
            self.code = _child(root, "Code")
            self.message = " ".join(_child(root, "Message").split())
            self.region = self.region or _child(root, "Region")
            self.request_id = self.request_id or _child(root, "RequestId")

    @property
    def is_told(self) -> bool:
        """Does anything of S3 say why: an error document, or a header that only S3 has?"""
        return bool(self.code or self.deleted or self.region)

    def error(self, *, key: str, bucket: str, denied: str = "") -> StoreError:
        """The error to raise; ``denied`` is what these credentials may not do, where that is the reason."""
        kind = self._kind(key)
        line = self._line(kind, bucket)
        if denied and line == _LINES["AccessDenied"]:
            line = f"{line}: {denied}"
        error = kind(line, key=key, status=self.status, code=self.code, request_id=self.request_id)
        error.retry_after_s = self.retry_after_s
        return error

    def _kind(self, key: str) -> type[StoreError]:
        kind = _BY_CODE.get(self.code)
        if self.status == 405 and self.deleted:
            return NoSuchKeyError  # the version that was asked for is a delete marker
        if self.code == "InvalidArgument" and "version id" in self.message.lower():
            return NoSuchKeyError  # an id in a form that this store never gives
        if kind is WrongRegionError and self.status == 400 and not self.region:
            return AccessDeniedError
        if kind is NoSuchKeyError and not key:
            return NoSuchBucketError  # of a list: there is nothing that could be listed
        if kind is not None:
            return kind
        if self.status == 400 and self.region and not self.code:
            return WrongRegionError  # HEAD of a bucket elsewhere: 400 without a body
        if self.status == 404 and not key:
            return NoSuchBucketError
        if self.status == 409 and self.code:
            return ConflictError if self.code.endswith("Conflict") else RejectedError
        if self.status >= 500 or self.status < 300:
            return _BY_STATUS.get(self.status, ServerFaultError)
        return _BY_STATUS.get(self.status, RejectedError)

    def _line(self, kind: type[StoreError], bucket: str) -> str:
        if kind is WrongRegionError:
            if self.region:
                return f"the bucket {bucket!r} lives in region {self.region}; use --region"
            return f"the bucket {bucket!r} lives in another region or at another endpoint"
        if kind is NoSuchBucketError:
            return _LINES["NoSuchBucket"].format(bucket=bucket)
        known = _LINES.get(self.code)
        if known:
            return known.format(bucket=bucket)
        if not self.code and kind is NoSuchKeyError:
            return _LINES["NoSuchKey"]
        if not self.code and kind is AccessDeniedError:
            return _LINES["AccessDenied"]
        if not self.code and kind is PreconditionFailedError:
            return _LINES["PreconditionFailed"]
        if not self.code and kind is RangeError:
            return _LINES["InvalidRange"]
        said = ": ".join(part for part in (self.code, self.message) if part)
        return f"the store answered {self.status} {said}".rstrip()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or as a date after ``Date``."""
    value = headers.get("retry-after", "").strip()
    seconds = whole_number(value)
    if seconds is not None:
        return float(seconds)
    until_ns = http_date_ns(value)
    now_ns = http_date_ns(headers.get("date", ""))
    return max(0, until_ns - now_ns) / 1e9 if until_ns and now_ns else None


def parse_error(body: bytes) -> ElementTree.Element | None:
    """The root of an ``<Error>`` document; ``None`` when ``body`` is something else."""
    if b"<Error" not in body:
        return None
    try:
        root = parse_xml(body)
    except ServerFaultError:
        return None
    return root if root.tag.rpartition("}")[2] == "Error" else None


def _child(root: ElementTree.Element, name: str) -> str:
    for child in root:
        if child.tag.rpartition("}")[2] == name:
            return child.text or ""
    return ""


def from_boto(error: Exception, *, key: str, bucket: str) -> StoreError:
    """The error for what boto3 raised."""
    if isinstance(error, botocore.exceptions.ClientError):
        return _from_client_error(error, key, bucket)
    if isinstance(
        error,
        botocore.exceptions.NoCredentialsError
        | botocore.exceptions.PartialCredentialsError
        | botocore.exceptions.CredentialRetrievalError
        | botocore.exceptions.TokenRetrievalError
        | botocore.exceptions.SSOError,
    ):
        return NoCredentialsError(
            f"{_line(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "choose a --profile, or use --no-sign-request for a public bucket"
        )
    if isinstance(error, botocore.exceptions.ReadTimeoutError):
        return DeadlineError("the store did not answer in time", key=key)
    if isinstance(error, botocore.exceptions.SSLError):
        failure = NetworkError(f"no TLS: {_line(error)}", key=key)
        failure.retryable = "CERTIFICATE_VERIFY_FAILED" not in str(error)
        return failure
    if isinstance(error, botocore.exceptions.HTTPClientError | botocore.exceptions.ConnectionError):
        return NetworkError(_line(error), key=key)
    if isinstance(error, botocore.parsers.ResponseParserError):
        return ServerFaultError(f"the answer is not S3's: {_line(error)}", key=key)
    return RejectedError(_line(error), key=key)


def _from_client_error(error: botocore.exceptions.ClientError, key: str, bucket: str) -> StoreError:
    response: Mapping[str, Mapping[str, object]] = error.response  # type: ignore[assignment]
    about = response.get("ResponseMetadata", {})
    given = about.get("HTTPHeaders", {})
    headers = {str(k): str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}
    status = about.get("HTTPStatusCode", 0)
    refusal = Refusal(status if isinstance(status, int) else 0, headers, b"")
    code = str(response.get("Error", {}).get("Code", ""))
    refusal.code = "" if code.isdigit() else code
    refusal.message = str(response.get("Error", {}).get("Message", ""))
    return refusal.error(key=key, bucket=bucket)


def _line(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split())) or type(error).__name__
