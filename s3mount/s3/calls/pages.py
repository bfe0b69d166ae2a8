"""Pages of lists: asked for so that every key can be read, and held against the pages before.

A key may hold characters that XML cannot. Most stores send them all the same, and ``documents`` reads
that. Some answer 500, send a document that no parser reads, or put U+FFFD in their place: such a page is
asked for again with ``encoding-type=url``. Only such a page, since LocalStack 4.8 then compares encoded
keys with its bare token and loses keys at the seam of two pages ("a+b", every key that is not ASCII).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar, cast

from s3mount.errors import NotS3Error, ServerFaultError, StoreError
from s3mount.refs import ListPage, ObjectInfo
from s3mount.s3.documents import NOT_XML
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Answer, Call
from s3mount.s3.http.signing import canonical_query

PLAIN_TRIES = 2
"""A page that fails so often is asked for with encoded keys."""
CHAINS_MAX = 4096
"""So many continuations are remembered, with the key that their page must come behind."""
EMPTY_PAGES_MAX = 1000
"""More empty pages in a row than this do not come to an end."""
REPLACED = "\ufffd"

Query = Sequence[tuple[str, str]]
Chain = tuple[str, str]
"""Prefix and delimiter of a list."""


_Page = TypeVar("_Page")


class _ReadableError(Exception):
    """The page came, encoded."""

    def __init__(self, found: tuple[Answer, object]) -> None:
        super().__init__()
        self.found = found


def folder_of(prefix: str) -> str:
    """The prefix that a directory bucket can list, where ``prefix`` ends inside a name.

    >>> folder_of("a/b"), folder_of("a/"), folder_of("b")
    ('a/', 'a/', '')
    """
    return prefix[: prefix.rfind("/") + 1]


class Pages:
    """Asks for pages of lists by the HTTP client."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._plain_tries = PLAIN_TRIES

    async def ask(
        self,
        kind: str,
        wanted: Query,
        parse: Callable[[bytes], _Page],
        size_bytes: int,
        names: Callable[[_Page], Iterable[str]],
        merged: Callable[[_Page, _Page], _Page],
    ) -> tuple[Answer, _Page]:
        """The answer to the query ``wanted``, and the page that ``parse`` makes of it. Raises StoreError.

        ``names`` are the keys and prefixes of a page; ``merged(plain, encoded)`` is the plain page with the
        names of the encoded one.
        """
        size = size_bytes
        plain = Call(kind, "GET", "", query=canonical_query(wanted), size_bytes=size)
        query = canonical_query([*wanted, ("encoding-type", "url")])
        encoded = Call(kind, "GET", "", query=query, size_bytes=size)
        failed = 0

        async def look() -> None:
            nonlocal failed
            failed += isinstance(plain.failure, ServerFaultError | NotS3Error)
            if failed != self._plain_tries:
                return
            found = await self._encoded(encoded, parse)
            if found is not None and any(NOT_XML.search(name) for name in names(found[1])):
                raise _ReadableError(found)

        plain.before_retry = look
        try:
            answer, page = await self._http.read(plain, parse)
        except _ReadableError as readable:
            self._plain_tries = 1  # there may be more of them
            return cast(tuple[Answer, _Page], readable.found)
        if any(REPLACED in name for name in names(page)):
            found = await self._encoded(encoded, parse)
            if found is not None and _fits(names(page), names(found[1])):
                return answer, merged(page, found[1])
        return answer, page

    async def _encoded(
        self, call: Call, parse: Callable[[bytes], _Page]
    ) -> tuple[Answer, _Page] | None:
        try:
            return await self._http.read(call, parse, 1)
        except StoreError:
            return None  # the plain page, or its failure, counts


def _fits(plain: Iterable[str], encoded: Iterable[str]) -> bool:
    """Are these the same names, but for characters in whose place the plain ones have U+FFFD?"""
    before, behind = list(plain), list(encoded)
    return len(before) == len(behind) and all(
        re.fullmatch(re.escape(a).replace(REPLACED, "(.|\n)"), b) is not None
        for a, b in zip(before, behind, strict=True)
    )


def is_behind(name: str, other: str) -> bool:
    """Does ``name`` come behind ``other``, by the order of UTF-8 or by that of UTF-16, which some stores use?"""
    if name > other:
        return True
    return not name.isascii() and _utf16(name) > _utf16(other)


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _is_ordered(names: Sequence[str]) -> bool:
    return all(is_behind(b, a) or a == b for a, b in pairwise(names))


class _Seam(NamedTuple):
    """What a continuation must come behind (empty: nothing came yet), and how many empty pages went before."""

    last: str
    empty: int


class Following:
    """Holds each page of a list against the one that led to it.

    Servers repeat pages, go backward, or end a page early. What was listed already is left out; a page
    that has nothing else, or does not go on, raises ServerFaultError. S3 Express lists in no order; there
    only what is the same can be told.
    """

    def __init__(self, *, is_ordered: bool = True) -> None:
        self._seams: OrderedDict[tuple[Chain, str], _Seam] = OrderedDict()
        self._is_ordered = is_ordered

    def checked(self, page: ListPage, chain: Chain, token: str | None) -> ListPage:
        """``page``, the answer to ``token``, without what was listed before. Raises ServerFaultError."""
        keys = [info.key for info in page.objects]
        if len(set(keys)) < len(keys) or len(set(page.prefixes)) < len(page.prefixes):
            raise ServerFaultError("a list page has the same key twice")
        if token is None:
            return page
        if page.next_token == token:
            raise ServerFaultError("the store's list of keys does not advance")
        seam = self._seams.get((chain, token))
        if seam is None:
            return page
        if page.next_token is not None and not keys and not page.prefixes:
            if seam.empty >= EMPTY_PAGES_MAX:
                raise ServerFaultError("the store's list of keys has no end")
            return page
        if not (self._is_ordered and _is_ordered(keys) and _is_ordered(page.prefixes)):
            return page
        return _without_old(page, seam.last)

    def note(self, page: ListPage, chain: Chain, token: str | None) -> None:
        """``page`` was the answer to ``token``; remember where its continuation begins."""
        keys = [info.key for info in page.objects]
        if not (_is_ordered(keys) and _is_ordered(page.prefixes)):
            self._is_ordered = False
        if page.next_token is None or not self._is_ordered:
            return
        before = self._seams.get((chain, token)) if token else None
        last, empty = before or ("", 0)
        for name in (*keys[-1:], *page.prefixes[-1:]):
            if is_behind(name, last):
                last = name
        empty = 0 if keys or page.prefixes else empty + 1
        self._seams[chain, page.next_token] = _Seam(last, empty)
        if len(self._seams) > CHAINS_MAX:
            self._seams.popitem(last=False)


def _without_old(page: ListPage, last: str) -> ListPage:
    objects: tuple[ObjectInfo, ...] = tuple(o for o in page.objects if is_behind(o.key, last))
    prefixes = tuple(prefix for prefix in page.prefixes if is_behind(prefix, last))
    left = len(objects) + len(prefixes)
    had = len(page.objects) + len(page.prefixes)
    if left == had:
        return page
    only_last = {*(o.key for o in page.objects), *page.prefixes} == {last}
    if not left and not (only_last and page.next_token is None):
        raise ServerFaultError("the store's list of keys repeats a page")
    return ListPage(objects, prefixes, page.next_token)


def list_names(page: ListPage) -> list[str]:
    """The keys and prefixes of a page of objects."""
    return [info.key for info in page.objects] + list(page.prefixes)


def list_merged(plain: ListPage, encoded: ListPage) -> ListPage:
    """The page with readable keys, and the token that belongs to plain requests."""
    return ListPage(encoded.objects, encoded.prefixes, plain.next_token)
