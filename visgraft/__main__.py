"""Run the command line as `python -m visgraft`.

In: the process's arguments. Out: the process's exit status.
Usage: `python -m visgraft train recipe.yaml`
"""

import sys

from visgraft.cli import main

if __name__ == "__main__":
    sys.exit(main())
