"""All that is stored with an object: what HEAD tells, its tags and its grants.

HEAD tells everything but the tags, of which it tells the number on most stores, and the ACL. So an object
without tags, in a bucket whose ACLs are disabled, costs the HEAD alone. Where the store knows no tags or
ACLs, or rights are missing several times in a row, that is said, and nothing is asked for any more.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter
from urllib.parse import parse_qsl, quote, urlencode
from xml.etree import ElementTree

import msgspec

from s3mount.errors import (
    AccessDeniedError,
    NoSuchKeyError,
    RejectedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import Key, ObjectHeaders, ObjectInfo, VersionId
from s3mount.s3.calls.reading import Reader
from s3mount.s3.documents import parse_xml
from s3mount.s3.http import genuine
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Answer, Call
from s3mount.s3.http.signing import UNSIGNED_PAYLOAD, canonical_query
from s3mount.s3.traits import Traits

_log = logging.getLogger(__name__)

_ROOTS = ("Tagging", "AccessControlPolicy", "OwnershipControls")
REFUSALS_MAX = 3
"""After so many refusals in a row tags, or ACLs, are not asked for any more."""
_GROUPS = "http://acs.amazonaws.com/groups/global/"
_CANNED = {
    frozenset({("AllUsers", "READ")}): "public-read",
    frozenset({("AllUsers", "READ"), ("AllUsers", "WRITE")}): "public-read-write",
    frozenset({("AuthenticatedUsers", "READ")}): "authenticated-read",
}
"""What is granted beside the owner's FULL_CONTROL, and the canned ACL that grants it (ACL overview)."""


class Describer:
    """Looks at objects of one bucket."""

    def __init__(self, http: HttpClient, reader: Reader, traits: Traits) -> None:
        self._http = http
        self._reader = reader
        self._traits = traits
        self._refusals: Counter[str] = Counter()

    async def describe(self, key: Key, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.describe``."""
        info = await self._reader.head(key, version_id)
        headers = info.headers or ObjectHeaders()
        if info.tag_count is not None:
            self._traits.counts_tags = True
        if info.tag_count or (info.tag_count is None and not self._traits.counts_tags):
            headers = msgspec.structs.replace(headers, tags=await self._tags(key, version_id))
        if await self._are_acls_enabled():
            headers = msgspec.structs.replace(headers, acl=await self._acl(key, version_id))
        return msgspec.structs.replace(info, headers=headers)

    async def _tags(self, key: Key, version_id: VersionId | None) -> str | None:
        if not self._traits.has_tags:
            return None
        root = await self._ask("tagging", key, version_id)
        if root is None:
            self._traits.has_tags = self._refusals["tagging"] < REFUSALS_MAX
            return None
        found = [(_text(tag, "Key"), _text(tag, "Value")) for tag in _all(root, "Tag")]
        return tag_text(found) or None

    async def _are_acls_enabled(self) -> bool:
        traits = self._traits
        if traits.has_acls is None:
            if self._http.config.sign_requests:
                root = await self._ask("ownershipControls", "", None, is_told=False)
                rules = (
                    []
                    if root is None
                    else [_text(r, "ObjectOwnership") for r in _all(root, "Rule")]
                )
                traits.has_acls = "BucketOwnerEnforced" not in rules
            else:
                traits.has_acls = False
        return traits.has_acls

    async def _acl(self, key: Key, version_id: VersionId | None) -> dict[str, str] | None:
        root = await self._ask("acl", key, version_id)
        if root is None:
            self._traits.has_acls = self._refusals["acl"] < REFUSALS_MAX
            return None
        return granting(root)

    async def _ask(
        self, what: str, key: Key, version_id: VersionId | None, *, is_told: bool = True
    ) -> ElementTree.Element | None:
        """GET of a subresource; ``None`` where it is refused or unknown. Raises StoreError that may pass."""
        wanted = [(what, "")]
        if version_id:
            wanted.append(("versionId", version_id))
        call = Call("describe", "GET", key, query=canonical_query(wanted))
        try:
            root = _document(call, await self._http.call(call))
        except NoSuchKeyError:
            # Some stores say so of an object without tags.
            return ElementTree.Element("Tagging") if what == "tagging" else None
        except StoreError as error:
            if error.retryable:
                raise
            # A policy may refuse some keys alone; what the store does not know it does for all.
            self._refusals[what] += 1 if isinstance(error, AccessDeniedError) else REFUSALS_MAX
            if is_told:
                why = "may not be read" if isinstance(error, AccessDeniedError) else "are not told"
                level = logging.WARNING if isinstance(error, AccessDeniedError) else logging.INFO
                _log.log(
                    level, "%s of objects %s, so they are not kept: %s", what, why, error.describe()
                )
            return None
        self._refusals[what] = 0
        return root

    async def put_tags(self, key: Key, tags: str, version_id: VersionId | None) -> None:
        """See ``Store.put_tags``."""
        root = ElementTree.Element("Tagging", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        tag_set = ElementTree.SubElement(root, "TagSet")
        for name, value in parse_qsl(tags, keep_blank_values=True):
            tag = ElementTree.SubElement(tag_set, "Tag")
            ElementTree.SubElement(tag, "Key").text = name
            ElementTree.SubElement(tag, "Value").text = value
        document = ElementTree.tostring(root)
        wanted = [("tagging", "")]
        if version_id:
            wanted.append(("versionId", version_id))
        md5 = base64.b64encode(hashlib.md5(document, usedforsecurity=False).digest()).decode()
        call = Call(
            "put_tags",
            "PUT",
            key,
            query=canonical_query(wanted),
            headers={"content-md5": md5, "content-type": "application/xml"},
            body=document,
            payload_hash=UNSIGNED_PAYLOAD
            if not self._http.config.sign_requests
            else hashlib.sha256(document).hexdigest(),
        )
        await self._http.call(call)


def _document(call: Call, answer: Answer) -> ElementTree.Element:
    """The document that was asked for.

    Raises NotS3Error where something else than the store answered, and RejectedError where the store
    answers with something of its own, such as the object, as it does not know the question.
    """
    try:
        root = parse_xml(answer.body)
    except ServerFaultError as error:
        if "etag" not in answer.headers:  # as it would be with an object
            raise genuine.not_s3(str(error), call, answer.status, answer.headers) from error
        root = ElementTree.Element("none")
    if root.tag.rpartition("}")[2] in _ROOTS:
        return root
    if not genuine.is_marked(answer.headers):
        raise genuine.not_s3("no such document", call, answer.status, answer.headers)
    raise RejectedError(f"this store does not know {call.query!r}", key=call.key)


def tag_text(tags: list[tuple[str, str]]) -> str:
    """Tags in the form of ``x-amz-tagging``, in an order that does not depend on the store's."""
    return urlencode(sorted(tags), quote_via=quote)


def granting(policy: ElementTree.Element) -> dict[str, str]:
    """The request headers that grant what an AccessControlPolicy does; empty where only its owner has a grant."""
    owner = next((_text(found, "ID") for found in _all(policy, "Owner")), "")
    others: set[tuple[str, str]] = set()
    grantees: dict[str, list[str]] = {}
    for grant in _all(policy, "Grant"):
        permission = _text(grant, "Permission")
        uri, name, email = (_text(grant, each) for each in ("URI", "ID", "EmailAddress"))
        who = f'uri="{uri}"' if uri else f'id="{name}"' if name else f'emailAddress="{email}"'
        grantees.setdefault(permission, []).append(who)
        if (name, permission) != (owner, "FULL_CONTROL"):
            others.add((uri.removeprefix(_GROUPS) if uri else who, permission))
    if not others:
        return {}
    is_owners = f'id="{owner}"' in grantees.get("FULL_CONTROL", ())
    if is_owners and (canned := _CANNED.get(frozenset(others))):
        return {"x-amz-acl": canned}
    return {
        f"x-amz-grant-{permission.lower().replace('_', '-')}": ", ".join(sorted(names))
        for permission, names in sorted(grantees.items())
    }


def _all(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [found for found in root.iter() if found.tag.rpartition("}")[2] == name]


def _text(element: ElementTree.Element, name: str) -> str:
    """The text of the first ``name`` below, empty without one."""
    return next((found.text or "" for found in _all(element, name)), "")
