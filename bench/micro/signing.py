"""What a signature costs: ``python -m bench.micro.signing``."""

from __future__ import annotations

import timeit

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from s3mount.s3.http.signing import UNSIGNED_PAYLOAD, BotocoreSigner, Credentials, FastSigV4

HEADERS = {
    "host": "bucket.s3.eu-central-1.amazonaws.com",
    "content-type": "text/plain",
    "x-amz-meta-mode": "33188",
    "x-amz-meta-mtime": "1700000000.123456789",
    "x-amz-checksum-crc64nvme": "BeXKuz/B+us=",
}
CREDENTIALS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
PATH = "/folder/file%20name.txt"
BASE = "https://bucket.s3.eu-central-1.amazonaws.com"


def main() -> None:
    fast = FastSigV4("eu-central-1")

    def by_us() -> None:
        fast.sign(CREDENTIALS, "PUT", PATH, "", dict(HEADERS), UNSIGNED_PAYLOAD, 1.7e9)

    def by_botocore() -> None:
        request = AWSRequest(method="PUT", url=BASE + PATH, headers=dict(HEADERS), data=b"")
        signer = botocore.auth.S3SigV4Auth(BotocoreCredentials(*CREDENTIALS), "s3", "eu-central-1")
        signer.add_auth(request)

    asymmetric = BotocoreSigner(botocore.auth.AUTH_TYPE_MAPS["s3v4a"], BASE, "*", "s3")

    def by_botocore_asymmetrically() -> None:
        asymmetric.sign(CREDENTIALS, "PUT", PATH, "", dict(HEADERS), UNSIGNED_PAYLOAD, 1.7e9)

    for function, count in (
        (by_us, 20_000),
        (by_botocore, 2_000),
        (by_botocore_asymmetrically, 500),
    ):
        best = min(timeit.repeat(function, number=count, repeat=3)) / count
        print(f"{function.__name__:28} {best * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
