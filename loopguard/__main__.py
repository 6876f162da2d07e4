"""`python -m loopguard`: the same as the script `loopguard`."""

import sys

from loopguard.cli import main

if __name__ == "__main__":
    sys.exit(main())
