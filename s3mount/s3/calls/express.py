"""What only directory buckets have (S3 Express One Zone): RenameObject, and PutObject at an object's end.

Built from the API reference of Amazon S3 (RenameObject; PutObject, x-amz-write-offset-bytes). Both are used
only where the probe saw them do what is said there.
"""

from __future__ import annotations

import secrets

from s3mount.errors import (
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    ServerFaultError,
)
from s3mount.refs import Body, Condition, ContentRef, Key, PutResult
from s3mount.s3.calls.writing import Writer, put_result
from s3mount.s3.headers import check_key
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Call, body_bytes
from s3mount.s3.http.signing import canonical_query, encode_path

WRONG_OFFSET = "InvalidWriteOffset"
"""S3's code when an object has another size than the offset of what is to be added."""


class Express:
    """The requests that only directory buckets answer."""

    def __init__(self, http: HttpClient, writer: Writer) -> None:
        self._http = http
        self._writer = writer

    async def rename(self, source: ContentRef, key: Key, condition: Condition) -> PutResult:
        """See ``Store.rename``. Every try of one call has the same token, by which S3 knows it for the same."""
        check_key(source.key)
        check_key(key)
        headers = {
            "x-amz-rename-source": encode_path(source.key),
            "x-amz-rename-source-if-match": f'"{source.etag}"',
            "x-amz-client-token": secrets.token_hex(16),
        }
        if condition.if_absent:
            headers["if-none-match"] = "*"
        elif condition.if_match is not None:
            headers["if-match"] = f'"{condition.if_match}"'
        query = canonical_query([("renameObject", "")])
        answer = await self._http.call(Call("rename", "PUT", key, query=query, headers=headers))
        return put_result(answer, source.etag)

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """See ``Store.append``. The bytes are sent with their CRC64NVME, which S3 verifies and adds to the object's."""
        check_key(base.key)
        headers = {
            "x-amz-write-offset-bytes": str(base.size),
            "if-match": f'"{base.etag}"',
        }
        call = Call("append", "PUT", base.key, body=body, size_bytes=body_bytes(body))
        try:
            await self._writer.seal(call, headers, use_crc=True)
            answer = await self._http.call(call)
        except NoSuchKeyError as error:
            raise PreconditionFailedError(
                "somebody else deleted the object", key=base.key, status=404
            ) from error
        except RejectedError as error:
            if error.code != WRONG_OFFSET:
                raise
            raise PreconditionFailedError(
                "somebody else changed the object", key=base.key, status=412
            ) from error
        finally:
            call.close()
        told = answer.headers.get("x-amz-object-size", "")
        result = put_result(answer)
        size = int(told) if told.isdecimal() else base.size + body_bytes(body)
        if size != base.size + body_bytes(body) or result.etag == base.etag:
            raise ServerFaultError(
                f"of {body_bytes(body)} bytes behind {base.size} the store made {size}",
                key=base.key,
            )
        return result
