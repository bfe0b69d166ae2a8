"""One request to S3 and its answer, as the HTTP client passes them around."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping

from s3mount.errors import RejectedError, StoreError
from s3mount.refs import Body, FileSlice, Key
from s3mount.s3.http.error_mapping import Refusal, parse_error
from s3mount.s3.http.signing import EMPTY_SHA256
from s3mount.s3.http.wire import Head, Sink


class Call:
    """What to ask. It may be sent several times; ``in_doubt`` is set when a failed try may have
    taken effect.

    ``query`` is canonical. ``before_try`` may change headers and size before each try;
    ``before_retry`` is awaited after a failure that may pass, and may raise to end the tries.
    ``size_bytes`` is what will be moved and ``work_s`` what the store needs for its work,
    for the deadline. ``on_head`` sees the head of a
    successful answer, may raise, and returns the sink for the body (``None``: memory).
    With ``error_in_body`` a 200 answer may still be an error (COPY). ``check_body`` parses the document of a
    successful answer and raises ServerFaultError when it is none; without it the answer has no document.
    ``sent_to`` is the host that the last try went to, ``failure`` why it failed, ``answer_began`` if anything came.
    ``source`` is the bucket and key of what a copy reads. ``is_keyless`` and ``refused_otherwise`` are
    of ``customer_keys``.
    ``tries`` counts them, ``tried_at_s`` is when the last one began, ``moved`` how many bytes it sent and received,
    or the store copied for it.
    ``is_hedgeable``: it may be asked twice at once, and ``adopt`` takes the second one's answer, which is in memory,
    where the body has a sink. ``hedge`` is that answer, for the try whose scope is ``hedged_try``.
    """

    __slots__ = (
        "_fd",
        "adopt",
        "answer_began",
        "before_retry",
        "before_try",
        "body",
        "check_body",
        "error_in_body",
        "failure",
        "headers",
        "hedge",
        "hedged_try",
        "in_doubt",
        "is_hedgeable",
        "is_keyless",
        "key",
        "kind",
        "method",
        "moved",
        "on_head",
        "payload_hash",
        "query",
        "refused_otherwise",
        "sent_to",
        "size_bytes",
        "source",
        "tried_at_s",
        "tries",
        "work_s",
    )

    def __init__(
        self,
        kind: str,
        method: str,
        key: Key,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        body: Body | None = None,
        payload_hash: str = EMPTY_SHA256,
        size_bytes: int = 0,
        work_s: float = 0.0,
        on_head: Callable[[Head], Sink | None] | None = None,
        before_try: Callable[[], None] | None = None,
        error_in_body: bool = False,
        source: tuple[str, Key] | None = None,
    ) -> None:
        self.kind = kind
        self.method = method
        self.key = key
        self.query = query
        self.headers = headers or {}
        self.body = body
        self.payload_hash = payload_hash
        self.size_bytes = size_bytes
        self.work_s = work_s
        self.on_head = on_head
        self.error_in_body = error_in_body
        self.source = source
        self.is_keyless: bool | None = None
        self.refused_otherwise: StoreError | None = None
        self.before_try = before_try
        self.before_retry: Callable[[], Awaitable[None]] | None = None
        self.answer_began = False
        self.check_body: Callable[[bytes], object] | None = None
        self.in_doubt = False
        self.failure: StoreError | None = None
        self.sent_to = ""
        self.tries = 0
        self.tried_at_s = 0.0
        self.moved = 0
        self.is_hedgeable = True
        self.hedged_try: object = None
        self.adopt: Callable[[Answer], None] | None = None
        self.hedge: Answer | None = None
        self._fd = -1

    def again(self) -> Call:
        """The same, to be asked beside it: of a body that has a sink the answer comes into memory."""
        made = Call(
            self.kind,
            self.method,
            self.key,
            query=self.query,
            headers=dict(self.headers),
            size_bytes=self.size_bytes,
            on_head=None if self.adopt is not None else self.on_head,
        )
        made.check_body = self.check_body
        made.is_keyless = self.is_keyless
        made.is_hedgeable = False
        return made

    @property
    def body_length(self) -> int | None:
        """The Content-Length to send; ``None`` for requests that have no body."""
        if self.body is None:
            return 0 if self.method in ("PUT", "POST") else None
        return body_bytes(self.body)

    def open_body(self) -> int:
        """The descriptor of the body's file, opened once. Raises RejectedError."""
        if self._fd < 0 and isinstance(self.body, FileSlice):
            try:
                self._fd = os.open(self.body.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise local_failure(self.body.path, error) from error
        return self._fd

    def close(self) -> None:
        """Close the body's file. May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def body_bytes(body: Body) -> int:
    """How long a body is."""
    return len(body) if isinstance(body, bytes) else body.length


def local_failure(path: str, error: OSError) -> RejectedError:
    """The error for a local file that cannot be read or written; ``code`` is the errno's name."""
    code = errno.errorcode.get(error.errno or 0, "EIO")
    return RejectedError(f"{path}: {error.strerror}", code=code)


class Answer:
    """What came back, its body in memory unless a sink took it."""

    __slots__ = ("body", "headers", "refusal", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str], body: bytes, error_in_body: bool = False
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.refusal: Refusal | None = None
        if error_in_body and status < 300 and parse_error(body) is not None:
            self.refusal = Refusal(status, headers, body)
