"""Where the bucket answers and how to sign for it: boto3's own decisions, asked for once.

boto3 is made to prepare one HeadObject that is never sent; its URL tells endpoint and addressing,
its signature the scheme, region and service. So profiles, variables, FIPS, dual stack,
access points and S3 Express behave as in every other tool built on boto3.

Everything here may block: it runs in a thread.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Iterator
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import boto3
import botocore.auth
import botocore.exceptions
import msgspec
from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.utils import get_environ_proxies

from s3mount.config import StoreConfig
from s3mount.errors import UsageError
from s3mount.logs import without_secrets
from s3mount.s3.http.pool import Origin, Proxy, split_origin
from s3mount.s3.http.signing import SESSION_TOKEN, Anonymous, BotocoreSigner, FastSigV4, Signer

S3Client: TypeAlias = Any
"""boto3 makes its clients' classes at run time."""

EXPRESS = "s3express"
"""The service that requests to directory buckets are signed for."""
CONTROL_CONNECTIONS = 8
CONTROL_READ_TIMEOUT_S = 60.0
DEBIAN_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"

_SIGV4 = re.compile(r"^AWS4-HMAC-SHA256 Credential=[^,]*/(\d{8})/([^/]+)/([^/]+)/aws4_request")
_SIGV4A = re.compile(r"^AWS4-ECDSA-P256-SHA256 Credential=[^,]*/(\d{8})/([^/]+)/aws4_request")


class Address(msgspec.Struct, frozen=True):
    """The bucket's place: ``base_url`` has no path, ``path`` is ``""`` or ``/bucket``.

    ``account_signer`` is set for a directory bucket (S3 Express): it signs with the credentials of the account
    what a session does not allow; ``signer`` signs with those of a session.
    """

    base_url: str
    path: str
    region: str
    signer: Signer
    origin: Origin
    account_signer: Signer | None = None


def make_client(
    session: boto3.Session,
    config: StoreConfig,
    region: str | None,
    *,
    read_timeout_s: float = CONTROL_READ_TIMEOUT_S,
    tries: int = 1,
) -> S3Client:
    """boto3's client, by which it resolves addresses; without retries of its own, by default. Raises UsageError."""
    style = "path" if config.path_style else "auto"
    options: dict[str, Any] = {
        "s3": {"addressing_style": style},
        "retries": {"total_max_attempts": tries},
        "connect_timeout": config.timeouts.connect_s,
        "read_timeout": read_timeout_s,
        "max_pool_connections": CONTROL_CONNECTIONS,
        # Some stores refuse the checksums that boto3 would add by itself (Ceph 16: 411).
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "user_agent_extra": "s3mount",
    }
    if not config.sign_requests:
        options["signature_version"] = UNSIGNED
    try:
        return session.client(
            "s3",
            region_name=region,
            endpoint_url=config.endpoint_url,
            verify=_verify(session, config),
            config=Config(**options),
        )
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise UsageError(f"boto3 cannot use these settings: {error}") from error


def make_session(config: StoreConfig) -> boto3.Session:
    """boto3's session of the profile. Raises UsageError when there is no such profile."""
    try:
        return boto3.Session(profile_name=config.profile, region_name=config.region)
    except botocore.exceptions.BotoCoreError as error:
        raise UsageError(str(error)) from error


def _ca_file(session: boto3.Session, config: StoreConfig) -> str | None:
    """The trust store that the user named: option, AWS_CA_BUNDLE or the profile's ca_bundle."""
    return config.ca_bundle or session._session.get_config_variable("ca_bundle")


def _verify(session: boto3.Session, config: StoreConfig) -> bool | str | None:
    """What boto3 shall trust: the same as the HTTP client, the machine's own store by default."""
    if not config.verify_tls:
        return False
    named = _ca_file(session, config)
    if named:
        return named
    usual = (ssl.get_default_verify_paths().cafile, DEBIAN_CA_FILE)
    return next((path for path in usual if path and os.path.exists(path)), None)


def tls_context(session: boto3.Session, config: StoreConfig) -> ssl.SSLContext:
    """The TLS settings of the HTTP client. Raises UsageError for an unreadable CA file."""
    if not config.verify_tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    chosen = _verify(session, config)
    try:
        if isinstance(chosen, str) and os.path.isdir(chosen):
            context = ssl.create_default_context(capath=chosen)
        else:
            context = ssl.create_default_context(cafile=chosen if isinstance(chosen, str) else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the CA file {chosen} cannot be used: {error}") from error
    # A certificate is judged alike by every Python. From 3.13 on, an authority without a key usage is refused,
    # which is what `openssl req -x509` makes, and one that is trusted need not lead to a root.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def resolve(session: boto3.Session, client: S3Client, config: StoreConfig) -> Address:
    """Ask boto3 where and how. Raises UsageError and botocore's errors (no credentials...)."""
    request = _prepared_head(client, config.bucket)
    parts = urlsplit(request.url)
    base_url = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.removesuffix("/key")
    scheme, host, port = split_origin(base_url)
    tls = tls_context(session, config) if scheme == "https" else None
    origin = Origin(host, port, tls, _proxy(base_url))
    region, service, signer = _signer(request, base_url, client.meta.region_name)
    if service != EXPRESS:
        return Address(base_url, path, region, signer, origin)
    session_signer = FastSigV4(region, service, token_header=SESSION_TOKEN)
    return Address(base_url, path, region, session_signer, origin, signer)


def _prepared_head(client: S3Client, bucket: str) -> AWSPreparedRequest:
    caught: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        caught.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(b""))

    def begin_session(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        # S3 need not be there yet; the real sessions are begun when one is needed.
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(_NO_SESSION))

    client.meta.events.register("before-send.s3.HeadObject", answer)
    client.meta.events.register("before-send.s3.CreateSession", begin_session)
    try:
        client.head_object(Bucket=bucket, Key="key")
    except botocore.exceptions.ParamValidationError as error:
        raise UsageError(f"{bucket!r} is no bucket name: {error}") from error
    finally:
        client.meta.events.unregister("before-send.s3.HeadObject", answer)
        client.meta.events.unregister("before-send.s3.CreateSession", begin_session)
    return caught[0]


_NO_SESSION = (
    b"<CreateSessionResult><Credentials><AccessKeyId>none</AccessKeyId>"
    b"<SecretAccessKey>none</SecretAccessKey><SessionToken>none</SessionToken>"
    b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"
)


class _Body:
    """The body of an answer that was never sent."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: object) -> Iterator[bytes]:
        return iter((self._body,))


def _signer(request: AWSPreparedRequest, base_url: str, region: str) -> tuple[str, str, Signer]:
    """The signer that continues what boto3 did to ``request``, and the region and service it signs for."""
    given: object = request.headers.get("Authorization")
    if given is None:
        return region, "s3", Anonymous()
    text = given.decode() if isinstance(given, bytes) else str(given)
    plain = _SIGV4.match(text)
    if plain:
        service = unquote(plain[3])
        return plain[2], service, FastSigV4(plain[2], service)
    asymmetric = _SIGV4A.match(text)
    if asymmetric:
        auth_class = botocore.auth.AUTH_TYPE_MAPS.get("s3v4a")
        if auth_class is None:
            raise UsageError("this bucket needs SigV4A, for which botocore needs awscrt")
        return region, "s3", BotocoreSigner(auth_class, base_url, "*", asymmetric[2])
    return region, "s3", BotocoreSigner(botocore.auth.HmacV1Auth, base_url, region, "s3")


def _proxy(base_url: str) -> Proxy | None:
    """The HTTP proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for this URL."""
    scheme = urlsplit(base_url).scheme
    named = get_environ_proxies(base_url).get(scheme)
    if not named:
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"the proxy {without_secrets(named)} is not an http:// URL")
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode()
    return Proxy(parts.hostname, parts.port or 80, authorization)
