"""``python -m socft.cli`` is ``socft``."""

import sys

from socft.cli import main

if __name__ == "__main__":
    sys.exit(main())
