"""``python -m bench``, and ``python -m bench snapshots`` for what concerns the past of a bucket."""

import sys

from bench import cli, snapshots

if sys.argv[1:2] == ["snapshots"]:
    sys.exit(snapshots.main(sys.argv[2:]))
sys.exit(cli.main())
