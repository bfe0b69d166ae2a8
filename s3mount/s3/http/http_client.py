"""The HTTP client of S3: each request within its deadline, repeated where that helps.

A GET or PUT of 4 KiB costs 100 to 120 us of CPU over http and 125 to 140 over https, a third of it
in the kernel; a GiB 0.3 s into a file and 0.25 s from one, over https 0.9 to 1.0 (two busy cores,
``bench/micro/data_plane.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import trio

from s3mount.config import StoreConfig
from s3mount.errors import (
    ChecksumError,
    DeadlineError,
    NetworkError,
    RejectedError,
    ServerFaultError,
    StoreError,
    ThrottledError,
)
from s3mount.flow.backoff import Backoff
from s3mount.flow.outage import TRIAL_CONNECT_S, Outage
from s3mount.flow.timeouts import Allowance, Estimates, Timeouts
from s3mount.refs import FileSlice
from s3mount.s3.headers import beside, http_date_ns, lacking
from s3mount.s3.http import genuine
from s3mount.s3.http.credentials import CredentialSource, Renew
from s3mount.s3.http.customer_keys import CustomerKeys
from s3mount.s3.http.error_mapping import Refusal, action_denied
from s3mount.s3.http.hedging import HEDGED_KINDS, Hedger
from s3mount.s3.http.perf_log import Recorder, RequestRecord, record_of
from s3mount.s3.http.pool import Pool
from s3mount.s3.http.requests import Answer, Call, local_failure
from s3mount.s3.http.resolve import Address
from s3mount.s3.http.signing import Anonymous, Signer, encode_path
from s3mount.s3.http.statistics import Statistics
from s3mount.s3.http.traffic import Peer, Traffic, put_behind_others
from s3mount.s3.http.wire import BrokenConnectionError, Connection, Head, Sink
from s3mount.version import __version__

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

USER_AGENT = f"s3mount/{__version__}"
ANSWER_BYTES_MAX = 16 << 20
"""Bodies that are kept in memory (list pages, errors, small objects) are never larger."""
WATCH_EVERY_S = 0.2
"""How often progress moves a transfer's deadline."""
WATCH_BYTES_MIN = 256 * 1024
"""Smaller bodies come and go at once; their progress is not watched."""
READ_KINDS = frozenset(
    (
        "head",
        "get",
        "fetch",
        "list",
        "list_versions",
        "check_bucket",
        "attributes",
        "lifecycle",
        "describe",
    )
)
CHANGE_KINDS = frozenset(
    (
        *("put", "copy", "rename", "append", "delete", "delete_many"),
        *("upload_part", "upload_part_copy", "complete_multipart"),
    )
)
"""Success of these brings what is pending forward."""
ACCOUNT_KINDS = frozenset(("copy",))
"""These a session of S3 Express does not allow: they are signed for the account (CreateSession, Note)."""
CREATING_KINDS = frozenset(("put", "copy", "create_multipart", "probe"))
"""These make an object: the bucket's policy may demand that they name an encryption or an ACL."""
SKEW_S_MIN = 60.0
OUTAGE_POLL_S = 0.05
"""How often a request that waits for the end of an outage looks whether it may be the one that is sent."""
OUTAGE_PATIENCE_S = 1.0
"""So long a request waits in any case for its turn to look whether the store is back, or for another's look."""


class _Watch:
    """Follows one try: moves its deadline while bytes move, and feeds the estimates."""

    __slots__ = (
        "_acknowledged",
        "_allowance",
        "_changes",
        "_next_look_s",
        "_paused_s",
        "_scope",
        "_size",
        "_statistics",
        "_traffic",
        "answered_at_s",
        "began_at_s",
        "moved",
        "sent_at_s",
        "sent_bytes",
    )

    def __init__(
        self,
        scope: trio.CancelScope,
        allowance: Allowance,
        call: Call,
        statistics: Statistics,
        traffic: Traffic,
        now_s: float,
    ) -> None:
        self._scope = scope
        self._traffic = traffic
        self._allowance = allowance
        self._size = call.size_bytes
        self._changes = call.kind in CHANGE_KINDS
        self._statistics = statistics
        self.moved = 0
        self.sent_bytes = 0
        self._acknowledged = 0
        self.began_at_s = now_s
        self.sent_at_s = 0.0
        self.answered_at_s = 0.0
        self._next_look_s = now_s + WATCH_EVERY_S
        self._paused_s = 0.0

    def sent(self, n: int) -> None:
        self._statistics.bytes_sent += n
        self.sent_bytes += n
        if self._changes:
            self._statistics.bytes_written += n
        self._progress(n)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._changes:
            # What was sent has changed nothing, as far as is known.
            self._statistics.bytes_written -= self.sent_bytes

    def queued(self, n: int) -> None:
        if self.moved - n > self._acknowledged:
            self._acknowledged = self.moved - n
            self._extend(trio.current_time(), self._acknowledged)

    def sent_all(self) -> None:
        self.sent_at_s = now = trio.current_time()
        least_s = now + self._allowance.answer_s
        if self._scope.deadline < least_s:
            self._scope.deadline = least_s

    def answer_began(self) -> None:
        self.answered_at_s = trio.current_time()

    def received(self, n: int) -> None:
        self._statistics.bytes_received += n
        self._progress(n)

    def paused(self, seconds: float) -> None:
        # By our own will: neither the store nor the line is slower for it.
        self._scope.deadline += seconds
        self.began_at_s += seconds
        if self.sent_at_s:
            self._paused_s += seconds

    def received_in_s(self, now_s: float) -> float:
        """How long the answer's body takes, at the speed of the line."""
        return now_s - self.answered_at_s - self._paused_s

    def _progress(self, n: int) -> None:
        self.moved += n
        if self._size < WATCH_BYTES_MIN:
            return
        now = trio.current_time()
        if now >= self._next_look_s:
            self._next_look_s = now + WATCH_EVERY_S
            self._extend(now, self.moved)
            self._traffic.look(now)

    def _extend(self, now_s: float, done: int) -> None:
        allowed_s = self._allowance.deadline_s(now_s - self.began_at_s, done, self._size)
        self._scope.deadline = max(self._scope.deadline, self.began_at_s + allowed_s)


class HttpClient:
    """Sends calls to one bucket. ``rebind`` exchanges address and credentials while it runs.

    ``account`` are the credentials of ``Address.account_signer``, ``estimates`` what an earlier run learnt of the
    endpoint; ``recorder`` is told of each request.
    """

    def __init__(
        self,
        config: StoreConfig,
        address: Address,
        credentials: CredentialSource,
        statistics: Statistics,
        renew: Renew,
        on_outage: Callable[[str], None] = lambda reason: None,
        account: CredentialSource | None = None,
        estimates: Estimates | None = None,
        recorder: Recorder | None = None,
        customer_keys: CustomerKeys | None = None,
    ) -> None:
        self.config = config
        self._renew = renew
        self._recorder = recorder
        self._recorded = 0
        self.statistics = statistics
        self.timeouts = Timeouts(config.timeouts, estimates)
        self._backoff = Backoff()
        self.traffic = Traffic(
            config, statistics, lambda: self._peer, self.timeouts.estimates.round_trip_s
        )
        self._peer: Peer | None = None
        self._hedger = Hedger(statistics, self._ask_again)
        self._skew_s = 0.0
        self.marks = genuine.Marks()
        self._back = trio.Event()
        self._on_outage = on_outage
        self.outage = Outage(self._outage_changed)
        self._pool = Pool(address.origin, self._connected)
        self._beside = beside(config.new_objects)
        self.customer_keys = customer_keys or CustomerKeys(config)
        self.rebind(address, credentials, account)

    def rebind(
        self,
        address: Address,
        credentials: CredentialSource,
        account: CredentialSource | None = None,
    ) -> None:
        """From now on use this address and these credentials."""
        self.customer_keys.rebind(address.base_url, address.region)
        self.address = address
        self.credentials = credentials
        self._account = account or credentials
        if not self._pool.origin.same_place(address.origin):
            self._pool.close()
            self._pool = Pool(address.origin, self._connected)
        self._pool.rebind(address.origin)
        # Through a proxy without a tunnel the request line names the whole URL (RFC 9112, 3.2.2).
        by_proxy = address.origin.proxy is not None and address.origin.tls is None
        self._target_prefix = address.base_url if by_proxy else ""

    @property
    def is_express(self) -> bool:
        """Is it a directory bucket (S3 Express), which takes fewer kinds of requests?"""
        return self.address.account_signer is not None

    def _connected(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed already: whoever uses it is told
            self._peer = Peer(raw.family, raw.getpeername())
            self.traffic.connected(raw, trio.current_time())
        if self.config.background:
            put_behind_others(raw)

    def close(self) -> None:
        """Close idle connections."""
        self.timeouts.estimates.round_trip_s = self.traffic.trip.base_s
        self.traffic.close()
        self._hedger.close()
        self._pool.close()

    def gauges(self) -> dict[str, float]:
        """What the statistics tell of the present."""
        reading, writing = self.traffic.reading.gate, self.traffic.writing.gate
        return {
            "requests_running": reading.inside + writing.inside,
            "window_read": reading.window.size,
            "window_write": writing.window.size,
            "round_trip_s": self.traffic.trip.base_s,
            "tls_sessions_resumed": self._pool.resumed,
        }

    async def read(
        self, call: Call, parse: Callable[[bytes], _T], tries_max: int | None = None
    ) -> tuple[Answer, _T]:
        """``call`` for a request whose answer is a document, and what ``parse`` makes of that.

        ``parse`` raises ServerFaultError for what S3 would not send; then the answer is none of S3's.
        """
        parsed: _T

        def check(body: bytes) -> None:
            nonlocal parsed
            parsed = parse(body)

        call.check_body = check
        answer = await self.call(call, tries_max)
        return answer, parsed

    async def call(self, call: Call, tries_max: int | None = None) -> Answer:
        """Send ``call`` until it succeeds, cannot succeed, or the tries are used up.

        Raises StoreError. ``call.in_doubt`` tells afterwards whether a failed try may have taken effect.
        """
        is_logged = _log.isEnabledFor(logging.DEBUG)
        if self._recorder is None and not is_logged:
            return await self._tries(call, tries_max)
        began_s, expected = trio.current_time(), self.timeouts.s_per_byte(call.kind)
        status, request_id = 0, ""
        try:
            answer = await self._tries(call, tries_max)
            status, request_id = answer.status, answer.headers.get(genuine.REQUEST_ID, "")
            return answer
        except StoreError as error:
            status, request_id = error.status, error.request_id
            raise
        finally:
            self._recorded += 1
            record = record_of(self._recorded, call, status, began_s, expected)
            if self._recorder is not None:
                self._recorder(record)
            if is_logged:
                _log_request(record, request_id)

    async def _tries(self, call: Call, tries_max: int | None) -> Answer:
        retry = 0
        tries_max = tries_max or self.config.timeouts.tries
        while True:
            await self._until_reachable(call)
            try:
                return await self._through_gate(call, retry)
            except StoreError as error:
                call.failure = error
                if await self._renew(error) or self.customer_keys.tries_otherwise(call, error):
                    continue
                retry += 1
                is_void = bool(error.code) and isinstance(error, ThrottledError)
                if error.retryable and not is_void and not isinstance(error, ChecksumError):
                    call.in_doubt = True
                if not error.retryable or retry >= tries_max:
                    raise
                if self._is_away_for(call) and self._offline_wait_left_s() <= 0:
                    raise
                delay_s = self._backoff.delay_s(
                    retry,
                    throttled=isinstance(error, ThrottledError),
                    retry_after_s=error.retry_after_s,
                )
                _log.debug("try %d of %s failed: %s", retry, call.kind, error.describe())
            if call.before_retry is not None:
                await call.before_retry()
            self.statistics.retries += 1
            await self._pause(delay_s)

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next try; no longer than an outage lasts."""
        if not self.outage.reason:
            await trio.sleep(delay_s)
            return
        with trio.move_on_after(delay_s):
            await self._back.wait()

    async def _until_reachable(self, call: Call) -> None:
        """While the store is away, hold a reading request back for as long as is allowed. Raises NetworkError.

        One at a time is sent all the same. Changes are tried again by who holds them, at their own pace.
        """
        patience_until_s = trio.current_time() + OUTAGE_PATIENCE_S
        while self._is_away_for(call) and not self.outage.may_try(trio.current_time()):
            now_s = trio.current_time()
            left_s = max(self._offline_wait_left_s(), patience_until_s - now_s)
            if left_s <= 0:
                away_s = now_s - self.outage.since_s
                raise NetworkError(
                    f"S3 has not been reached for {away_s:.0f} s: {self.outage.reason}",
                    key=call.key,
                )
            with trio.move_on_after(min(left_s, OUTAGE_POLL_S)):
                await self._back.wait()

    def _is_away_for(self, call: Call) -> bool:
        return bool(self.outage.reason) and call.kind in READ_KINDS

    def _offline_wait_left_s(self) -> float:
        return self.config.offline_wait_s - (trio.current_time() - self.outage.since_s)

    def _outage_changed(self, reason: str) -> None:
        if reason:
            self._back = trio.Event()
            _log.warning("S3 cannot be reached: %s", reason)
        else:
            self._back.set()
            _log.warning("S3 can be reached again")
        self._on_outage(reason)

    def _note_reachable(self, call: Call, began_s: float, error: StoreError | None) -> None:
        """Tell the outage how a try ended."""
        now_s = trio.current_time()
        is_failure = isinstance(error, NetworkError | DeadlineError | ServerFaultError)
        is_cut_off = isinstance(error, BrokenConnectionError | DeadlineError) and call.answer_began
        if not is_failure or is_cut_off or (error is not None and error.request_id):
            self.outage.answered(now_s)
        else:
            self.outage.failed(began_s, now_s, str(error))

    async def _through_gate(self, call: Call, retry: int) -> Answer:
        traffic = self.traffic
        gate = (traffic.reading if call.kind in READ_KINDS else traffic.writing).gate
        await gate.enter()
        began_s = trio.current_time()
        try:
            answer = await self.once(call, retry)
        except ThrottledError:
            self.statistics.throttled += 1
            gate.window.throttled(began_s, trio.current_time())
            raise
        except DeadlineError:
            self.statistics.overdue += 1
            gate.window.overdue(began_s, trio.current_time())
            raise
        except ChecksumError:
            self.statistics.checksum_errors += 1
            raise
        else:
            gate.window.succeeded()
            return answer
        finally:
            gate.leave()

    async def _ask_again(self, call: Call) -> Answer | None:
        """A second request beside one that is late, where there is room for it."""
        way = self.traffic.reading
        if not way.may_hedge:
            return None
        await way.gate.enter()
        try:
            self.statistics.hedges += 1
            return await self.once(call, 1)
        finally:
            way.gate.leave()

    async def once(self, call: Call, retry: int) -> Answer:
        """One try (two, when the first met a kept connection that the store had closed)."""
        began_s = trio.current_time()
        _, credentials = self._signing(call)
        if not credentials.ready(began_s):
            try:
                await credentials.renew()
            except StoreError as error:
                self._note_reachable(call, began_s, error)
                raise
            began_s = trio.current_time()
        if call.before_try is not None:
            call.before_try()
        self.statistics.count(call.kind)
        call.tries += 1
        call.tried_at_s = began_s
        call.answer_began = False
        allowance = self.timeouts.allowance(call.kind, call.size_bytes, retry, work_s=call.work_s)
        scope = trio.CancelScope(deadline=began_s + allowance.total_s)
        if retry == 0:
            self._hedger.watch(call, scope, began_s)
        try:
            with scope:
                answer = await self._send(call, allowance, scope, began_s)
        except StoreError as error:
            self.statistics.failed += 1
            self._note_reachable(call, began_s, error)
            raise
        finally:
            now = trio.current_time()
            self._hedger.leave(call)
            self.traffic.look(now)
            self.statistics.ended(now - began_s, now - scope.deadline)
        if scope.cancelled_caught and call.hedge is not None:
            self._note_reachable(call, began_s, None)
            return _adopted(call, call.hedge)
        if scope.cancelled_caught:
            self.statistics.failed += 1
            waited_s = now - began_s
            overdue = DeadlineError(
                f"the store did not answer within {waited_s:.1f} s", key=call.key
            )
            self._note_reachable(call, began_s, overdue)
            raise overdue
        self._note_reachable(call, began_s, None)
        return answer

    async def _send(
        self, call: Call, allowance: Allowance, scope: trio.CancelScope, now_s: float
    ) -> Answer:
        pool = self._pool
        connection = pool.take_idle(now_s)
        if connection is not None:
            try:
                with self._watching(scope, allowance, call, now_s) as watch:
                    return await self._converse(pool, connection, call, watch)
            except BrokenConnectionError as error:
                if error.answered:
                    raise
                self.statistics.stale += 1
                call.in_doubt = True
        is_trial = self._is_away_for(call)
        connect_s = min(allowance.connect_s, TRIAL_CONNECT_S) if is_trial else allowance.connect_s
        scope.deadline = trio.current_time() + connect_s
        connection = await pool.connect()
        self.statistics.opened += 1
        now_s = trio.current_time()
        scope.deadline = now_s + allowance.total_s
        with self._watching(scope, allowance, call, now_s) as watch:
            return await self._converse(pool, connection, call, watch)

    def _watching(
        self, scope: trio.CancelScope, allowance: Allowance, call: Call, now_s: float
    ) -> _Watch:
        return _Watch(scope, allowance, call, self.statistics, self.traffic, now_s)

    async def _converse(
        self, pool: Pool, connection: Connection, call: Call, watch: _Watch
    ) -> Answer:
        """One request and its answer on one connection, which is kept or closed afterwards."""
        head_bytes = self._head(call)
        connection.up, connection.down = self.traffic.writing.pace, self.traffic.reading.pace
        keep = False
        try:
            try:
                if isinstance(call.body, FileSlice):
                    await connection.send_file(head_bytes, call.open_body(), call.body, watch)
                else:
                    await connection.send(head_bytes, call.body, watch)
            except BrokenConnectionError as error:
                # A store may refuse before it has read everything, and close: its reason counts.
                head = await _early_answer(connection, watch, error)
            else:
                head = await connection.read_head(watch)
            call.answer_began = True
            answer = await self._receive(connection, call, head, watch)
            whole = watch.sent_at_s > 0 and (head.has_end or call.method == "HEAD")
            keep = whole and head.keep_alive and connection.is_clean
        finally:
            ended_s = trio.current_time()
            if keep:
                pool.give_back(connection, ended_s)
            else:
                connection.close()
        if answer.status >= 300 or answer.refusal is not None:
            self._refuse(call, answer)
        genuine.check_body(call, answer)
        self.customer_keys.check(call, answer)
        call.moved = max(watch.moved, call.size_bytes if call.error_in_body else 0)
        self.marks.learn(call.method, answer.headers)
        if watch.sent_at_s:
            self._learn(call, watch, ended_s)
        return answer

    def _signing(self, call: Call) -> tuple[Signer, CredentialSource]:
        """What signs ``call``, and with which credentials."""
        address = self.address
        if address.account_signer is None or call.kind not in ACCOUNT_KINDS:
            return address.signer, self.credentials
        return address.account_signer, self._account

    def _head(self, call: Call) -> bytes:
        address = self.address
        signer, credentials = self._signing(call)
        call.sent_to = address.origin.host_header
        path = f"{address.path}/{encode_path(call.key)}" if call.key else address.path or "/"
        headers = {"host": address.origin.host_header, **call.headers}
        if call.kind in CREATING_KINDS and call.method in ("PUT", "POST"):
            headers |= lacking(headers, self._beside)
        self.customer_keys.put_into(call, headers)
        if self.config.request_payer:
            headers["x-amz-request-payer"] = "requester"
        signer.sign(
            credentials.current,
            call.method,
            path,
            call.query,
            headers,
            call.payload_hash,
            time.time() + self._skew_s,
        )
        target = (
            f"{self._target_prefix}{path}?{call.query}"
            if call.query
            else (self._target_prefix + path)
        )
        # Not signed, as botocore does not sign these: they describe the message, not the request.
        headers["user-agent"] = USER_AGENT
        length = call.body_length
        if length is not None:
            headers["content-length"] = str(length)
        proxy = address.origin.proxy
        if self._target_prefix and proxy is not None and proxy.authorization:
            headers["proxy-authorization"] = proxy.authorization
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"{call.method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")

    async def _receive(
        self, connection: Connection, call: Call, head: Head, watch: _Watch
    ) -> Answer:
        if head.status < 300:
            genuine.check_head(call, head.status, head.headers, self.marks)
        if call.method == "HEAD":
            return Answer(head.status, head.headers, b"")
        sink: Sink | None = None
        if head.status < 300 and call.on_head is not None:
            sink = call.on_head(head)
        if sink is not None:
            await connection.read_body(head, sink, watch)
            return Answer(head.status, head.headers, b"")
        kept = bytearray()

        def keep(piece: memoryview) -> None:
            kept.extend(piece)
            if len(kept) > ANSWER_BYTES_MAX:
                raise RejectedError("the answer is too long", key=call.key)

        await connection.read_body(head, keep, watch)
        return Answer(head.status, head.headers, bytes(kept), call.error_in_body)

    def _learn(self, call: Call, watch: _Watch, ended_s: float) -> None:
        """Feed the estimates with a try that succeeded."""
        timeouts = self.timeouts
        if call.kind in HEDGED_KINDS:
            self._hedger.stragglers.took(call.kind, call.size_bytes, ended_s - watch.began_at_s)
        if call.error_in_body and call.size_bytes >= WATCH_BYTES_MIN:
            # A copy: the store moves the bytes before it answers.
            timeouts.transferred(call.kind, call.size_bytes, ended_s - watch.sent_at_s)
        elif call.body is not None and call.size_bytes >= WATCH_BYTES_MIN:
            # What the kernel took at once is under way until the answer comes.
            timeouts.transferred(call.kind, call.size_bytes, watch.answered_at_s - watch.began_at_s)
        else:
            timeouts.answered(call.kind, watch.answered_at_s - watch.sent_at_s)
            if call.body is None:
                timeouts.transferred(call.kind, watch.moved, watch.received_in_s(ended_s))

    def _refuse(self, call: Call, answer: Answer) -> NoReturn:
        refusal = answer.refusal or Refusal(answer.status, answer.headers, answer.body)
        is_bare = call.method == "HEAD" and not genuine.is_marked(answer.headers)
        if call.method != "HEAD" and not refusal.is_told:
            raise genuine.unknown(call, answer)
        if answer.status == 405 and call.method in ("GET", "HEAD") and "versionId=" in call.query:
            refusal.deleted = True  # reading a delete marker; not all stores say so in a header
        bucket = self.config.bucket
        is_signed = not isinstance(self.address.signer, Anonymous)
        denied = action_denied(call.kind, call.key, call.query, bucket, is_signed=is_signed)
        error = refusal.error(key=call.key, bucket=bucket, denied=denied)
        if refusal.code == "RequestTimeTooSkewed" and self._correct_skew(answer):
            error.retryable = True
        if is_bare and error.retryable:
            raise genuine.unknown(call, answer)
        error.is_bare = is_bare
        raise error

    def _correct_skew(self, answer: Answer) -> bool:
        """Sign by the store's clock from now on. ``False`` when that is done already or no help."""
        theirs_s = http_date_ns(answer.headers.get("date", "")) / 1e9
        if not theirs_s:
            return False
        skew_s = theirs_s - time.time()
        if abs(skew_s - self._skew_s) < SKEW_S_MIN:
            return False
        self._skew_s = skew_s
        _log.warning("this machine's clock is %.0f s off the store's; signing by theirs", skew_s)
        return True


def _adopted(call: Call, answer: Answer) -> Answer:
    """The answer to ``call`` that came to its second asking. Raises StoreError, as the first might."""
    if call.adopt is not None:
        call.adopt(answer)
    return answer


async def _early_answer(
    connection: Connection, watch: _Watch, error: BrokenConnectionError
) -> Head:
    try:
        return await connection.read_head(watch)
    except NetworkError:
        raise error from None


def file_sink(fd: int, offset: int, path: str, on_bytes: Callable[[int], None]) -> Sink:
    """A sink that writes to an open file from ``offset`` on; ``on_bytes`` hears of each piece.

    A full or failing disk raises RejectedError whose ``code`` is the errno's name.
    """
    position = offset

    def write(piece: memoryview) -> None:
        nonlocal position
        while piece:
            try:
                n = os.pwrite(fd, piece, position)
            except OSError as error:
                raise local_failure(path, error) from error
            position += n
            piece = piece[n:]
            on_bytes(n)

    return write


def _log_request(record: RequestRecord, request_id: str) -> None:
    """How a request ended, for who looks for it in the provider's logs."""
    _log.debug(
        "%s of %r: %d after %d tries in %.0f ms, request-id=%s",
        record.kind,
        record.key,
        record.status,
        record.attempts,
        record.total_ms,
        request_id or "-",
        extra={
            "about": {
                "kind": record.kind,
                "key": record.key,
                "status": record.status,
                "tries": record.attempts,
                "ms": record.total_ms,
                "request_id": request_id,
            }
        },
    )
