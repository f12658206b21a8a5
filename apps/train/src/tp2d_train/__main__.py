"""`python -m tp2d_train`."""

import sys

from tp2d_train.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
