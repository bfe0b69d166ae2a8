"""Starts LocalStack so that it listens where it was told to, and nowhere else.

A script of its own, run by path in the embedded server's environment. LocalStack 4.8 takes the host of
``GATEWAY_LISTEN`` but then listens on every interface, and it asks nobody for a valid secret: on a
laptop in a café it would be everybody's. It also runs on, deaf, when the port is taken. So this says
``listening`` on standard output when it is, and ends the process when it cannot.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from twisted.internet import endpoints


class OneAddress(endpoints.TCP4ServerEndpoint):  # type: ignore[misc]  # twisted is not installed with mypy
    """A TCP endpoint on the host of ``GATEWAY_LISTEN`` that ends the process when it cannot listen."""

    def __init__(self, reactor: Any, port: int) -> None:
        super().__init__(reactor, port, interface=os.environ["GATEWAY_LISTEN"].rpartition(":")[0])

    def listen(self, factory: Any) -> Any:
        """Listen and say so, or end the process with the reason on standard error."""
        return super().listen(factory).addCallbacks(_announce, _give_up)


def _announce(port: Any) -> Any:
    print("listening", flush=True)
    return port


def _give_up(failure: Any) -> None:
    print(failure.getErrorMessage(), file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    endpoints.TCP4ServerEndpoint = OneAddress
    runpy.run_module("localstack.runtime.main", run_name="__main__")
