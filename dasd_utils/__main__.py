"""`python -m dasd_utils`, and the command `dasd`: an interrupt while it loads ends without a traceback."""

import importlib
import sys


def main() -> None:
    """Load and run the command; exit status 130 where that is interrupted."""
    try:
        importlib.import_module("dasd_utils.apps.cli.main").main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
