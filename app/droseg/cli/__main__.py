"""`python -m droseg.cli`, where the console script is not on the PATH."""

import sys

from droseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
