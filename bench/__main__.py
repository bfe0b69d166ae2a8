"""``python -m bench``; with ``snapshots`` what concerns the past of a bucket, with ``transfers`` what has no mount,
with ``networks`` bad networks, with ``packs`` small files with packs and without."""

import sys

from bench import cli, networks, packs, snapshots, transfers

if sys.argv[1:2] == ["snapshots"]:
    sys.exit(snapshots.main(sys.argv[2:]))
if sys.argv[1:2] == ["transfers"]:
    sys.exit(transfers.main(sys.argv[2:]))
if sys.argv[1:2] == ["networks"]:
    sys.exit(networks.main(sys.argv[2:]))
if sys.argv[1:2] == ["packs"]:
    sys.exit(packs.main(sys.argv[2:]))
sys.exit(cli.main())
