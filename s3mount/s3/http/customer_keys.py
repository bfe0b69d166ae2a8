"""SSE-C on the wire: which requests carry a customer's key, and what an object without one, or with another, means.

A bucket may hold objects with and without: S3 refuses a key for an object that has none with the same 400 as
a missing one. So a request that is refused is sent once more the other way, and what was found is remembered.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections import OrderedDict

from s3mount.config import StoreConfig
from s3mount.customer_key import CustomerKey
from s3mount.errors import CustomerKeyError, StoreError, UsageError
from s3mount.refs import Key
from s3mount.s3.headers import CUSTOMER, SSE
from s3mount.s3.http.pool import split_origin
from s3mount.s3.http.requests import Answer, Call

COPY_SOURCE = CUSTOMER.replace("x-amz-", "x-amz-copy-source-")
_READING = frozenset(("head", "get", "fetch", "attributes"))
_ECHOED = frozenset(("put", "copy", "create_multipart", "upload_part", "probe"))
"""Answers to these tell with which key the store encrypted; without that it did not."""
_KEYED = _READING | _ECHOED | {"upload_part_copy", "complete_multipart", "list_parts"}
_COPYING = frozenset(("copy", "upload_part_copy"))
_ABOUT_KEYS = re.compile("server.side encryption|hash of the key", re.IGNORECASE)
_REFUSALS = frozenset(
    ("", "AccessDenied", "Forbidden", "BadRequest", "InvalidRequest", "InvalidArgument")
)
"""Codes of refusals that a key, or none, may be the reason of."""
PLAIN_MAX = 10_000
"""So many objects without a key are remembered."""
NOT_ENCRYPTED = "NotEncryptedByCustomerKey"
"""The code of the error for a store that does not encrypt."""


class _Secret:
    """A key; nothing that shows an object shows it."""

    __slots__ = ("_is_master", "_key")

    def __init__(self, where: CustomerKey) -> None:
        self._key = where.read()
        self._is_master = where.is_master

    def headers(self, prefix: str, url: str) -> dict[str, str]:
        """The three headers for the object at ``url``, as ``object_url`` has it."""
        own = hashlib.sha256(self._key + url.encode()).digest() if self._is_master else self._key
        md5 = hashlib.md5(own, usedforsecurity=False).digest()
        return {
            f"{prefix}algorithm": "AES256",
            f"{prefix}key": base64.b64encode(own).decode(),
            f"{prefix}key-md5": base64.b64encode(md5).decode(),
        }


class CustomerKeys:
    """Puts keys into the requests of one bucket; no other part of a store knows of them.

    Made by reading what ``config`` names, which blocks. Raises EncryptionKeyError, UsageError.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._bucket = config.bucket
        key, source_key = config.customer_key, config.copy_source_key or config.customer_key
        if source_key is not None and config.is_directory_bucket:
            raise UsageError("directory buckets take no keys for SSE-C")
        self._key = None if key is None else _Secret(key)
        self._source_key = None if source_key is None else _Secret(source_key)
        self._plain: OrderedDict[tuple[str, Key], None] = OrderedDict()
        self._base_url = self._region = ""

    def rebind(self, base_url: str, region: str) -> None:
        """The store is there from now on. Raises UsageError where a key would travel in the open."""
        if self._source_key is not None and not _is_safe(base_url):
            raise UsageError(
                f"a key for SSE-C travels by https only, and this endpoint is {base_url}"
            )
        self._base_url, self._region = base_url, region

    @property
    def are_used(self) -> bool:
        """Is what is written here encrypted by a key, or may a copy's source be?"""
        return self._source_key is not None

    def put_into(self, call: Call, headers: dict[str, str]) -> None:
        """Add to ``headers`` what ``call`` needs. Another encryption cannot be named beside a key."""
        if call.kind not in _KEYED or call.method == "DELETE":
            return
        if call.is_keyless is None:
            call.is_keyless = self._subject(call) in self._plain
        if self._key is not None and not (call.kind in _READING and call.is_keyless):
            for name in [each for each in headers if each.startswith(SSE)]:
                del headers[name]
            headers |= self._key.headers(CUSTOMER, self._url(self._bucket, call.key))
        if self._source_key is not None and call.source is not None and not call.is_keyless:
            headers |= self._source_key.headers(COPY_SOURCE, self._url(*call.source))

    def _url(self, bucket: str, key: Key) -> str:
        return object_url(self._base_url, self._region, bucket, key)

    def check(self, call: Call, answer: Answer) -> None:
        """Look at a success. Raises CustomerKeyError where the store did not encrypt with a key that it got."""
        if call.refused_otherwise is not None:
            call.refused_otherwise = None
            self._remember(call)
        if self._key is None or call.kind not in _ECHOED or call.method not in ("PUT", "POST"):
            return
        if f"{CUSTOMER}algorithm" not in answer.headers:
            raise CustomerKeyError(
                "the store does not encrypt with the key that was given (SSE-C)",
                key=call.key,
                status=answer.status,
                code=NOT_ENCRYPTED,
            )

    def tries_otherwise(self, call: Call, error: StoreError) -> bool:
        """Is ``call``, which was refused, to be sent once more, without its key or with it?

        Raises CustomerKeyError where that shows that the object has another key than was given, or that
        it has one and none was; and what was said first where trying otherwise did not help.
        """
        if error.status not in (400, 403) or error.code not in _REFUSALS:
            return False
        is_told = _ABOUT_KEYS.search(str(error)) is not None
        secret = self._source_key if call.kind in _COPYING else self._key
        if secret is None or call.kind not in _READING | _COPYING:
            if is_told and call.kind in _READING | _COPYING:
                raise _wrong("is encrypted with a key (SSE-C); name it by --sse-c-key-file", error)
            return False
        first = call.refused_otherwise
        if first is None:
            call.refused_otherwise = error
            call.is_keyless = not call.is_keyless
            return True
        without, with_key = (error, first) if call.is_keyless else (first, error)
        call.refused_otherwise = call.is_keyless = None
        is_told = is_told or _ABOUT_KEYS.search(str(first)) is not None
        if is_told or (with_key.status, without.status) == (403, 400):
            raise _wrong("is encrypted with another key than was given (SSE-C)", error)
        raise first

    def _subject(self, call: Call) -> tuple[str, Key]:
        """What is read."""
        return call.source if call.source is not None else (self._bucket, call.key)

    def _remember(self, call: Call) -> None:
        self._plain.pop(self._subject(call), None)
        if call.is_keyless:
            self._plain[self._subject(call)] = None
            if len(self._plain) > PLAIN_MAX:
                self._plain.popitem(last=False)


def _wrong(what: str, error: StoreError) -> CustomerKeyError:
    return CustomerKeyError(
        f"the object {what}",
        key=error.key,
        status=error.status,
        code=error.code,
        request_id=error.request_id,
    )


def object_url(base_url: str, region: str, bucket: str, key: Key) -> str:
    """The URL of an object of which, with a master key, its own key is made.

    As s3am writes it, whose objects are read by this. Elsewhere than at AWS the region counts for nothing, as a
    variable may change it.

    >>> object_url("https://s3.eu-west-1.amazonaws.com", "eu-west-1", "b", "a/k")
    'https://s3-eu-west-1.amazonaws.com/b/a/k'
    """
    is_first = "amazonaws" not in base_url or region in ("", "us-east-1", "aws-global")
    return f"https://s3{'' if is_first else f'-{region}'}.amazonaws.com/{bucket}/{key}"


def _is_safe(base_url: str) -> bool:
    """Does nobody else hear what is sent there?"""
    scheme, host, _ = split_origin(base_url)
    if scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
