"""TLS of the HTTP client: sessions that are taken over, and certificates that will not do."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.errors import CertificateError
from s3mount.refs import ObjectHeaders
from s3mount.s3.client import RENEW_EVERY_S, S3Store
from tests.idle_clock import IdleClock
from tests.unit.s3.fault_server import FaultServer

PLAIN = ObjectHeaders()


class Authority:
    """A certificate authority of the test's own, in ``folder``."""

    def __init__(self, folder: Path, name: str, issuer: Authority | None = None) -> None:
        self.folder = folder
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        basic = "basicConstraints=critical,CA:TRUE"
        if issuer is None:
            self._openssl("req", "-x509", *self._new_key(name), "-days", "2", "-out", self.cert)
        else:
            issuer.sign(name, self.cert, self.key, basic)

    def _new_key(self, name: str) -> list[str | Path]:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        return [*curve, "-subj", f"/CN={name}", "-keyout", self.folder / f"{name}.key"]

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def sign(self, name: str, cert: Path, key: Path, extension: str, days: int = 2) -> None:
        """A certificate for a new ``key``; with no ``days`` it has expired at once."""
        request, said = cert.with_suffix(".csr"), cert.with_suffix(".ext")
        said.write_text(extension)
        self._openssl("req", "-new", *self._new_key(name), "-out", request)
        signing: list[str | Path] = ["-CA", self.cert, "-CAkey", self.key, "-CAcreateserial"]
        signing += ["-days", str(days), "-extfile", said]
        self._openssl("x509", "-req", "-in", request, *signing, "-out", cert)
        assert key.exists()

    def server(self, name: str, host: str = "DNS:localhost", *, days: int = 2) -> tuple[Path, Path]:
        """A server's certificate and key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self.sign(name, cert, key, f"subjectAltName={host}", days)
        return cert, key


class TlsServer(FaultServer):
    """A ``FaultServer`` behind TLS. ``certificate`` may be exchanged at any time."""

    def __init__(self, certificate: tuple[Path, Path]) -> None:
        super().__init__()
        self.exchange_certificate(certificate)

    def exchange_certificate(self, certificate: tuple[Path, Path]) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*map(str, certificate))

    async def serve_tls(self, stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
        await self.serve(secured)  # type: ignore[arg-type]


def run(
    server: TlsServer, ca_file: Path, body: Callable[[TlsServer, S3Store], Awaitable[None]]
) -> None:
    async def main() -> None:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, server.serve_tls, 0)
                config = StoreConfig(
                    bucket="bucket",
                    endpoint_url=f"https://localhost:{listeners[0].socket.getsockname()[1]}",
                    region="us-east-1",
                    path_style=True,
                    ca_bundle=str(ca_file),
                )
                async with S3Store(config) as store:
                    await body(server, store)
                nursery.cancel_scope.cancel()

    clock = IdleClock(rate=20)
    trio.run(main, clock=clock, instruments=[clock])


def test_many_connections_shake_hands_in_full_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")

    async def body(server: TlsServer, store: S3Store) -> None:
        await store.put("key", b"content", PLAIN)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(store.get, "key")
        counted = await store.statistics()
        assert counted["connections_opened"] > 10
        assert counted["tls_sessions_resumed"] == counted["connections_opened"] - 1

    run(TlsServer(authority.server("server")), authority.cert, body)


@pytest.mark.parametrize("is_root", [True, False])
def test_an_authority_that_is_named_is_enough(tmp_path: Path, is_root: bool) -> None:
    """As openssl makes one, without a key usage; also one that another has signed."""
    authority = Authority(tmp_path, "authority")
    if not is_root:
        authority = Authority(tmp_path, "between", authority)

    async def body(server: TlsServer, store: S3Store) -> None:
        await store.put("key", b"content", PLAIN)

    run(TlsServer(authority.server("server")), authority.cert, body)


def test_each_certificate_that_will_not_do_is_told_apart(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    between = Authority(tmp_path, "between", authority)
    wrong = {
        "has expired: the server needs a new one": authority.server("expired", days=0),
        "is for another name": authority.server("name", "DNS:s3.example.com"),
        "does not lead to a trusted authority: the server must send the whole chain": (
            between.server("chain")
        ),
        "is not trusted (self-signed certificate); name its authority by AWS_CA_BUNDLE": (
            other.cert,
            other.key,
        ),
    }

    async def body(server: TlsServer, store: S3Store) -> None:
        for said, certificate in wrong.items():
            server.exchange_certificate(certificate)
            with pytest.raises(CertificateError) as raised:
                await store.head("key")
            assert str(raised.value).startswith("the certificate of localhost ")
            assert said in str(raised.value)

    run(TlsServer(authority.server("server")), authority.cert, body)


def test_a_certificate_that_changes_is_trusted_once_its_authority_is(tmp_path: Path) -> None:
    """The server changes its authority while the store is open; then the file of authorities follows."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(first.cert.read_bytes())

    async def body(server: TlsServer, store: S3Store) -> None:
        await store.put("key", b"content", PLAIN)
        server.exchange_certificate(second.server("moved"))
        store._http.close()
        with pytest.raises(CertificateError):
            await store.get("key")
        trusted.write_bytes(first.cert.read_bytes() + second.cert.read_bytes())
        await trio.sleep(RENEW_EVERY_S + 1)
        with pytest.raises(CertificateError):
            await store.get("key")
        assert (await store.get("key"))[1] == b"content"

    run(TlsServer(first.server("server")), trusted, body)
