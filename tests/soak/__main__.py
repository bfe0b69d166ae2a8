"""``python -m tests.soak``: see ``tests/soak/run.py``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests import mounting
from tests.servers.chosen import chosen
from tests.soak.run import Soak, reason_to_skip


def main() -> int:
    """Exit status 0 when nothing was lost; 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--server", choices=("localstack", "ceph", "given"), default="ceph")
    options = parser.parse_args()
    print(f"soak: {options.minutes:g} minutes on {options.server}, seed {options.seed}", flush=True)
    if reason := reason_to_skip():
        print(f"soak: skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="s3mount-soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with chosen(options.server, folder / "server") as server:
            bucket = server.make_bucket()
            soak = Soak(server, bucket, folder, minutes=options.minutes, seed=options.seed)
            try:
                return soak.run()
            finally:
                mounting.close_all()
                if server.lasting:
                    server.remove_bucket(bucket)


if __name__ == "__main__":
    sys.exit(main())
