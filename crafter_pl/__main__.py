"""`python -m crafter_pl VERB ...`: see `crafter_pl.cli`."""

import sys

from crafter_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
