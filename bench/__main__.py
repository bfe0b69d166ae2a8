"""``python -m bench``; with ``snapshots`` what concerns the past of a bucket, with ``transfers`` what has no mount,
with ``networks`` bad networks."""

import sys

from bench import cli, networks, snapshots, transfers

if sys.argv[1:2] == ["snapshots"]:
    sys.exit(snapshots.main(sys.argv[2:]))
if sys.argv[1:2] == ["transfers"]:
    sys.exit(transfers.main(sys.argv[2:]))
if sys.argv[1:2] == ["networks"]:
    sys.exit(networks.main(sys.argv[2:]))
sys.exit(cli.main())
