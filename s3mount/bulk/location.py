"""What an argument of the bulk commands names: objects in S3, a local path, a standard stream, a URL to read from.

In an ``s3://`` key ``*`` stands for any characters, ``/`` among them, and ``?`` for one: keys know no folders.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

from s3mount.errors import LocationError, SourceError, UsageError
from s3mount.refs import Key
from s3mount.s3.headers import KEY_BYTES_MAX

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_ARN = re.compile(r"(arn:[^/]+:accesspoint[:/][^/:]+)(?:/(.*))?", re.DOTALL)
_WILDCARD = re.compile(r"[*?]")
URL_SCHEMES = ("http", "https", "ftp")
"""What can be read from beside S3 and local files."""


class S3Location(NamedTuple):
    """A place in a bucket. ``key`` is a key; a folder where it is empty or ends with ``/``; or a pattern.

    ``with_below``: all that lies below a key's name is meant as well, as of a local folder.
    """

    bucket: str
    key: str = ""
    is_pattern: bool = False
    with_below: bool = False

    @property
    def url(self) -> str:
        """As it is written."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        """Does it mean what lies below it: does it end with a slash, or name no key at all?"""
        return not self.is_pattern and (not self.key or self.key.endswith("/"))

    @property
    def beginning(self) -> str:
        """With what every key that it may mean begins."""
        return _WILDCARD.split(self.key, maxsplit=1)[0] if self.is_pattern else self.key

    @property
    def base(self) -> str:
        """The folder from which on keys are named: up to the last slash before a wildcard, else before its end."""
        beginning = self.beginning
        return beginning[: beginning.rfind("/") + 1]

    def matches(self, key: Key) -> bool:
        """Is ``key`` meant: itself, in this folder, or fitting the pattern?"""
        if self.is_pattern:
            return _compiled(self.key).fullmatch(key) is not None
        if self.is_folder:
            return key.startswith(self.key)
        return key == self.key or (self.with_below and key.startswith(f"{self.key}/"))

    @property
    def is_everything(self) -> bool:
        """Does it mean the whole bucket?"""
        return not self.key.strip("*") if self.is_pattern else not self.key

    def tree(self) -> S3Location:
        """The same with all that lies below it."""
        return self._replace(with_below=not self.is_pattern and not self.is_folder)

    def at(self, name: str) -> S3Location:
        """The object ``name`` below this folder."""
        return S3Location(self.bucket, self.key + name)


class LocalPath(NamedTuple):
    """A local file or folder."""

    path: str

    @property
    def url(self) -> str:
        """As it is written."""
        return self.path

    @property
    def is_folder(self) -> bool:
        """Does it end with a slash, and so mean what lies in it?"""
        return self.path.endswith("/")


class Stream(NamedTuple):
    """Standard input or output."""

    url: str = "-"
    is_folder: bool = False


class RemoteUrl(NamedTuple):
    """An ``http``, ``https`` or ``ftp`` URL: only a source."""

    url: str

    @property
    def is_folder(self) -> bool:
        """Never: a server says nothing of what lies below."""
        return False

    @property
    def name(self) -> str:
        """The last part of its path; empty where there is none."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


Location: TypeAlias = S3Location | LocalPath | Stream | RemoteUrl


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c) or re.escape(c) for c in pattern), re.DOTALL)


def parse(text: str, *, raw: bool = False) -> Location:
    """What ``text`` names; with ``raw`` wildcards in it stand for themselves.

    Raises LocationError for an ``s3://`` URL that cannot be, SourceError for a URL of another kind, UsageError for
    none at all.
    """
    if not text:
        raise UsageError("an empty name is no place: - is standard input and output")
    if text == "-":
        return Stream()
    scheme, separator, rest = text.partition(":")
    if separator and scheme.lower() == "s3":
        return parse_s3(text, raw=raw)
    if separator and scheme.lower() == "file" and rest.startswith("/"):
        return _local(text, rest)
    if "://" in text and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme.lower() not in URL_SCHEMES or not urlsplit(text).netloc:
            raise SourceError(
                f"{text!r} is of no kind that can be read: s3://BUCKET/KEY, http://, https://, ftp://, "
                "file:// or a path"
            )
        return RemoteUrl(text)
    return LocalPath(text)


def _local(text: str, rest: str) -> LocalPath:
    """The path of a ``file:`` URL."""
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost") or not path:
        raise SourceError(f"{text!r} names a file of another machine: file:///PATH is a local one")
    return LocalPath(unquote(path))


def parse_s3(text: str, *, raw: bool = False) -> S3Location:
    """The place that an ``s3://`` URL names. Raises LocationError."""
    head, _, rest = text.partition("://")
    if head.lower() != "s3":
        raise LocationError(f"{text!r} is no place in S3: s3://BUCKET/KEY")
    arn = _ARN.fullmatch(rest)
    if arn is not None:
        bucket, key = arn[1], arn[2] or ""
    else:
        bucket, _, key = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            told = f"{bucket!r} is no bucket" if bucket else "it names no bucket"
            raise LocationError(f"{text!r}: {told}: s3://BUCKET/KEY")
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise LocationError(f"{text!r} is not valid UTF-8, as keys are") from None
    if length > KEY_BYTES_MAX:
        raise LocationError(f"a key of {length} bytes: S3 takes {KEY_BYTES_MAX}")
    return S3Location(bucket, key, not raw and has_wildcards(key))


def has_wildcards(text: str) -> bool:
    """Would ``text`` be a pattern, without ``--raw``?"""
    return _WILDCARD.search(text) is not None
