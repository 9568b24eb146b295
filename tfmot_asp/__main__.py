"""``python -m tfmot_asp``: the command line, where the ``tfmot-asp`` program is not on the PATH."""

import sys

from tfmot_asp.cli import main

if __name__ == "__main__":
    sys.exit(main())
