"""`python -m tp2d_train`."""

import sys

from tp2d_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
