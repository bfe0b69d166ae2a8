"""Where boto3 sends requests and how it signs them, and that the HTTP client does the same."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig, TimeoutSettings
from s3mount.errors import DeadlineError, NetworkError, NoCredentialsError, UsageError
from s3mount.refs import ObjectHeaders
from s3mount.s3.boto_session import bind
from s3mount.s3.client import S3Store
from s3mount.s3.http.resolve import Address, make_client, make_session, resolve
from s3mount.s3.http.signing import Anonymous, BotocoreSigner, FastSigV4
from tests.unit.s3.fault_server import Exchange, FaultServer, behave

PLAIN = ObjectHeaders()


def address(**settings: object) -> Address:
    config = StoreConfig(**{"bucket": "my-bucket", **settings})  # type: ignore[arg-type]
    session = make_session(config)
    client = make_client(session, config, config.region)
    try:
        return resolve(session, client, config)
    finally:
        client.close()


def test_aws_is_addressed_as_boto3_addresses_it() -> None:
    at = address(region="eu-west-1")
    assert at.base_url == "https://my-bucket.s3.eu-west-1.amazonaws.com"
    assert (at.path, at.region, at.origin.port) == ("", "eu-west-1", 443)
    assert isinstance(at.signer, FastSigV4)
    assert at.origin.tls is not None
    assert at.origin.host_header == "my-bucket.s3.eu-west-1.amazonaws.com"
    at = address(region="eu-west-1", path_style=True)
    assert (at.base_url, at.path) == ("https://s3.eu-west-1.amazonaws.com", "/my-bucket")
    # A dot would not match the certificate of *.s3.eu-west-1.amazonaws.com.
    at = address(region="eu-west-1", bucket="my.bucket")
    assert (at.base_url, at.path) == ("https://s3.eu-west-1.amazonaws.com", "/my.bucket")


def test_other_endpoints() -> None:
    at = address(endpoint_url="http://127.0.0.1:9000", region="us-east-1")
    assert (at.base_url, at.path) == ("http://127.0.0.1:9000", "/my-bucket")
    assert (at.origin.tls, at.origin.host_header) == (None, "127.0.0.1:9000")
    at = address(endpoint_url="https://example.com/base", region="x", path_style=True)
    assert (at.base_url, at.path) == ("https://example.com", "/base/my-bucket")
    assert at.region == "x"


def test_what_is_no_plain_sigv4_is_left_to_botocore() -> None:
    assert isinstance(address(sign_requests=False, region="us-east-1").signer, Anonymous)
    at = address(bucket="arn:aws:s3::123456789012:accesspoint/abc.mrap", region="us-east-1")
    assert isinstance(at.signer, BotocoreSigner)
    assert at.base_url == "https://abc.mrap.accesspoint.s3-global.amazonaws.com"


def test_settings_that_cannot_be_used_are_usage_errors(tmp_path: Path) -> None:
    for settings in (
        {"bucket": "no good"},
        {"profile": "nobody"},
        {"endpoint_url": "not a url"},
        {"endpoint_url": "https://127.0.0.1", "ca_bundle": str(tmp_path / "none")},
    ):
        with pytest.raises(UsageError):
            address(**{"region": "us-east-1", **settings})


def test_without_credentials_it_says_where_they_could_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(NoCredentialsError, match="--profile"):
        bind(StoreConfig(bucket="my-bucket", endpoint_url="http://127.0.0.1:1", region="r"))


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:p%40ss@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    proxy = address(endpoint_url="https://example.com", region="r").origin.proxy
    assert proxy is not None
    assert (proxy.host, proxy.port) == ("proxy", 3128)
    assert proxy.authorization == "Basic dXNlcjpwQHNz"
    assert address(endpoint_url="http://example.com", region="r").origin.proxy is None
    inside = address(endpoint_url="https://internal.example", region="r", path_style=True)
    assert inside.origin.proxy is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:s3cret@proxy")
    with pytest.raises(UsageError, match=r"the proxy socks5://\*\*\*@proxy is not"):
        address(endpoint_url="https://example.com", region="r")


def test_plain_requests_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        server = FaultServer()
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
            port = listeners[0].socket.getsockname()[1]
            monkeypatch.setenv("HTTP_PROXY", f"http://me:you@127.0.0.1:{port}")
            config = StoreConfig(
                bucket="bucket",
                endpoint_url="http://s3.example.com:8080",
                region="r",
                path_style=True,
            )
            async with S3Store(config) as store:
                await store.put("key", b"x", PLAIN)
            seen = server.seen[0]
            assert seen.target == "http://s3.example.com:8080/bucket/key"
            assert seen.headers["host"] == "s3.example.com:8080"
            assert seen.headers["proxy-authorization"] == "Basic bWU6eW91"
            assert "proxy-authorization" not in seen.headers["authorization"]
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for s3.example.com that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=s3.example.com", "-keyout", str(key)]
    command += ["-out", str(made), "-addext", "subjectAltName=DNS:s3.example.com"]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


class TunnelProxy:
    """A proxy that knows one place, whatever it is asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[str] = []
        self.refuse = False

    async def serve(self, client: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await client.receive_some()
        self.requests.append(head.decode())
        if self.refuse:
            await client.send_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with (
            await trio.open_tcp_stream("127.0.0.1", self.port) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._copy, client, server, nursery.cancel_scope)
            nursery.start_soon(self._copy, server, client, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        async for piece in source:
            await target.send_all(piece)
        scope.cancel()


def test_https_goes_through_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*map(str, certificate))

    async def main() -> None:
        server = FaultServer()

        async def serve_tls(stream: trio.SocketStream) -> None:
            secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await server.serve(secured)  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve_tls, 0)
            proxy = TunnelProxy(listeners[0].socket.getsockname()[1])
            proxies = await nursery.start(trio.serve_tcp, proxy.serve, 0)
            port = proxies[0].socket.getsockname()[1]
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            config = StoreConfig(
                bucket="bucket",
                endpoint_url="https://s3.example.com",
                region="r",
                path_style=True,
                ca_bundle=str(certificate[0]),
                timeouts=TimeoutSettings(tries=1),
            )
            async with S3Store(config) as store:
                await store.put("key", b"x" * 100_000, PLAIN)
                assert (await store.get("key"))[1] == b"x" * 100_000
            assert len(proxy.requests) == 1
            assert proxy.requests[0].startswith("CONNECT s3.example.com:443 HTTP/1.1\r\n")
            proxy.refuse = True
            async with S3Store(config) as store:
                with pytest.raises(NetworkError, match="403 Forbidden"):
                    await store.get("key")
            inside = msgspec.structs.replace(config, endpoint_url="https://[::1]:8711")
            async with S3Store(inside) as store:
                with pytest.raises(NetworkError, match=r"to connect to \[::1\]:8711"):
                    await store.get("key")
            assert "CONNECT [::1]:8711 HTTP/1.1\r\nHost: [::1]:8711\r\n" in proxy.requests[-1]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_s3_express_buckets_use_a_session_of_their_own() -> None:
    async def session_or_object(exchange: Exchange) -> None:
        if "session" not in exchange.target:
            await behave(exchange)
            return
        body = (
            b"<CreateSessionResult><Credentials><SessionToken>the-session</SessionToken>"
            b"<SecretAccessKey>session-secret</SecretAccessKey><AccessKeyId>session-key"
            b"</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
            b"</CreateSessionResult>"
        )
        await exchange.answer(200, body)

    async def main() -> None:
        server = FaultServer()
        server.then(*[session_or_object] * 20)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
            port = listeners[0].socket.getsockname()[1]
            config = StoreConfig(
                bucket="fast--use1-az4--x-s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                region="us-east-1",
                path_style=True,
            )
            async with S3Store(config) as store:
                await store.put("key", b"x", PLAIN)
            put = server.seen[-1]
            assert put.headers["x-amz-s3session-token"] == "the-session"
            assert "Credential=session-key/" in put.headers["authorization"]
            assert "/s3express/" in put.headers["authorization"]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_request_payer_and_storage_class_are_sent() -> None:
    async def main() -> None:
        server = FaultServer()
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
            port = listeners[0].socket.getsockname()[1]
            config = StoreConfig(
                bucket="bucket",
                endpoint_url=f"http://127.0.0.1:{port}",
                region="r",
                path_style=True,
                request_payer=True,
            )
            async with S3Store(config) as store:
                await store.put("key", b"", ObjectHeaders(storage_class="STANDARD_IA"))
                await store.get("key")
            assert server.seen[0].headers["x-amz-storage-class"] == "STANDARD_IA"
            for exchange in server.seen:
                assert exchange.headers["user-agent"].startswith("s3mount/")
                assert "user-agent" not in exchange.headers["authorization"]
                assert exchange.headers["x-amz-request-payer"] == "requester"
                assert "x-amz-request-payer" in exchange.headers["authorization"]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_unsigned_requests_have_no_signature() -> None:
    async def main() -> None:
        server = FaultServer()
        server.objects["key"] = b"public"
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
            port = listeners[0].socket.getsockname()[1]
            config = StoreConfig(
                bucket="bucket",
                endpoint_url=f"http://127.0.0.1:{port}",
                region="r",
                path_style=True,
                sign_requests=False,
            )
            async with S3Store(config) as store:
                assert (await store.get("key"))[1] == b"public"
            assert not [name for name in server.seen[0].headers if "auth" in name]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_name_that_does_not_exist_is_a_network_error() -> None:
    async def main() -> None:
        config = StoreConfig(
            bucket="bucket",
            endpoint_url="http://no-such-host.invalid",
            region="r",
            path_style=True,
            timeouts=TimeoutSettings(tries=1),
        )
        async with S3Store(config) as store:
            with pytest.raises(NetworkError, match=r"no-such-host\.invalid"):
                await store.get("key")

    assert os.environ.get("HTTP_PROXY") is None
    trio.run(main)


def test_a_connection_that_is_never_accepted_is_given_up() -> None:
    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            # Fill the queue, so that the next connection waits for ever.
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
                fillers.append(filler)
            config = StoreConfig(
                bucket="bucket",
                endpoint_url=f"http://127.0.0.1:{port}",
                region="r",
                path_style=True,
                timeouts=TimeoutSettings(tries=1, connect_s=0.5),
            )
            async with S3Store(config) as store:
                began = trio.current_time()
                with pytest.raises(DeadlineError):
                    await store.get("key")
                assert trio.current_time() - began < 3
            for filler in fillers:
                filler.close()

    trio.run(main)
