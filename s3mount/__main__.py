"""``python -m s3mount``: the same as the ``s3mount`` command."""

import sys

from s3mount.cli import main

if __name__ == "__main__":
    sys.exit(main())
