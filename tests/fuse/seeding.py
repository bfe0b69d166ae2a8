"""Many small objects put into a bucket quickly, without the mount."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers import S3Server

CONNECTIONS = 8
"""boto3 spends 7 ms of Python on a PUT, http.client with botocore's signer 0.5; then the server is the limit."""


def put_many(server: S3Server, bucket: str, keys: Sequence[str], body: bytes = b"") -> None:
    """PUT ``body`` under every key, on a few connections at once."""
    address = urlsplit(server.endpoint_url).netloc
    signer = S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", server.region)

    def put_share(share: Sequence[str]) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            for key in share:
                target = f"/{bucket}/{quote(key)}"
                headers = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
                request = AWSRequest("PUT", f"http://{address}{target}", headers, body)
                signer.add_auth(request)
                connection.request("PUT", target, body, dict(request.headers))
                answer = connection.getresponse()
                told = answer.read()
                assert answer.status == 200, told
        finally:
            connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for _ in threads.map(put_share, [keys[start::CONNECTIONS] for start in range(CONNECTIONS)]):
            continue
