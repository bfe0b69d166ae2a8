"""Which answers are S3's, for every request in one place.

A captive portal, an intercepting proxy or a load balancer without back ends answers as well, with any
status. So an answer counts only when it has what S3 must send for that request; everything else is
``NotS3Error``, an interruption that passes: nothing is known, and the request is sent again.

- A success has the status, the headers and the document that ``DEMANDS`` names.
- A refusal has an ``<Error>`` document with a code. An answer to HEAD has no body; without one of S3's own
  headers it is marked ``is_bare``, and the reader asks for the reason by GET.
- A store that put ``x-amz-request-id`` on several answers in a row to one method puts it on all. This is
  learned, as some stores send none (``Marks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from s3mount.errors import NotS3Error, ServerFaultError, StoreError, ThrottledError
from s3mount.s3.headers import bare_etag, is_md5_etag
from s3mount.s3.http.error_mapping import retry_after_s
from s3mount.s3.http.requests import Answer, Call

REQUEST_ID = "x-amz-request-id"
ALWAYS_AFTER = 3
"""A header that so many answers in a row carried is on all of them."""


class Demand(NamedTuple):
    """What a successful answer to one kind of request must have.

    ``has_content``: its body is the object's, of which nothing is demanded here. Otherwise it is a document
    where the call has a ``check_body``, else empty.
    """

    statuses: frozenset[int] = frozenset((200,))
    etag: bool = False
    has_content: bool = False


_STORED = Demand(etag=True)
_DOCUMENT = Demand()
_CONTENT = Demand(frozenset((200, 206)), etag=True, has_content=True)
_EMPTY = Demand(frozenset((200, 204)))

DEMANDS: dict[str, Demand] = {
    "put": _STORED,
    "probe": _STORED,
    "upload_part": _STORED,
    "get": _CONTENT,
    "fetch": _CONTENT,
    "head": Demand(etag=True, has_content=True),
    "append": _STORED,
    "rename": _EMPTY,
    "delete": _EMPTY,
    "abort_multipart": _EMPTY,
    "put_tags": _EMPTY,
    "delete_many": _DOCUMENT,
    "copy": _DOCUMENT,
    "upload_part_copy": _DOCUMENT,
    "create_multipart": _DOCUMENT,
    "complete_multipart": _DOCUMENT,
    "list": _DOCUMENT,
    "list_versions": _DOCUMENT,
    "list_parts": _DOCUMENT,
    "list_uploads": _DOCUMENT,
    "check_bucket": _DOCUMENT,
    "attributes": _DOCUMENT,
    "lifecycle": _DOCUMENT,
}
BUSY_STATUSES = frozenset((429, 503))
"""Whoever says so: fewer requests, later. A write may have taken effect, unless S3 itself says it."""
_ANY = Demand(frozenset((200, 204)))
"""Of a kind without a row."""


class Marks:
    """Does the store put ``x-amz-request-id`` on every answer? Learned by method, from answers that are S3's."""

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}

    def are_always_there(self, method: str) -> bool:
        """Is an answer to ``method`` without the mark none of this store's?"""
        return self._in_a_row.get(method, 0) >= ALWAYS_AFTER

    def learn(self, method: str, headers: Mapping[str, str]) -> None:
        """An answer that is S3's by all else came with these headers."""
        seen = self._in_a_row.get(method, 0)
        if REQUEST_ID not in headers:
            self._in_a_row[method] = -1  # one without is enough to demand it never
        elif 0 <= seen < ALWAYS_AFTER:
            self._in_a_row[method] = seen + 1


def is_marked(headers: Mapping[str, str]) -> bool:
    """Does an answer carry a header that only S3 sends, and is it no web page?"""
    return "text/html" not in headers.get("content-type", "") and any(
        name.startswith("x-amz-") for name in headers
    )


def check_head(call: Call, status: int, headers: Mapping[str, str], marks: Marks) -> None:
    """Raises NotS3Error unless a success (below 300) has the status and the headers that S3 sends.

    Called before anything of the body is used.
    """
    demand = DEMANDS.get(call.kind, _ANY)
    of_a_part = status == 206 and "partNumber=" in call.query
    if status not in demand.statuses and not of_a_part:
        raise not_s3("an unexpected status", call, status, headers)
    etag = headers.get("etag")
    if demand.etag and etag is None:
        raise not_s3("no ETag", call, status, headers)
    if call.kind == "head" and "content-length" not in headers:
        raise not_s3("no Content-Length", call, status, headers)
    if REQUEST_ID not in headers and marks.are_always_there(call.method):
        raise not_s3(f"no {REQUEST_ID}", call, status, headers)
    if etag is None or any(name.startswith("x-amz-") for name in headers):
        return
    pinned = call.headers.get("if-match")
    if demand.has_content and pinned and bare_etag(etag) != bare_etag(pinned):
        raise not_s3("another ETag than was asked for", call, status, headers)
    if not demand.has_content and not is_md5_etag(bare_etag(etag)):
        raise not_s3("an ETag of unknown form", call, status, headers)


def check_body(call: Call, answer: Answer) -> None:
    """Raises NotS3Error unless the body of a success is what S3 sends: a document, or nothing."""
    demand = DEMANDS.get(call.kind)
    if call.check_body is not None:
        try:
            call.check_body(answer.body)
        except ServerFaultError as error:
            raise not_s3(str(error), call, answer.status, answer.headers) from error
    elif demand is not None and not demand.has_content and answer.body.strip():
        raise not_s3("a body where S3 sends none", call, answer.status, answer.headers)


def unknown(call: Call, answer: Answer) -> StoreError:
    """The error for a refusal that has nothing of S3: NotS3Error, or ThrottledError where it asks for a pause."""
    error = not_s3("no error document", call, answer.status, answer.headers)
    if answer.status not in BUSY_STATUSES:
        return error
    busy = ThrottledError(str(error), key=call.key, status=answer.status)
    busy.retry_after_s = error.retry_after_s
    return busy


def not_s3(why: str, call: Call, status: int, headers: Mapping[str, str]) -> NotS3Error:
    """The error for an answer that is not S3's, with what came."""
    kind = headers.get("content-type", "").partition(";")[0].strip() or "without a content type"
    error = NotS3Error(
        f"{status} {kind} from {call.sent_to}: not an answer of S3 ({why})",
        key=call.key,
        status=status,
        request_id=headers.get(REQUEST_ID, ""),
    )
    error.retry_after_s = retry_after_s(headers)
    return error
