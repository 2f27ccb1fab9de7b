"""Run a recipe's search on a Ray cluster.

ray job submit --working-dir . -- python jobs/sweep.py RECIPE [PATH=VALUE]...
"""

import sys

from encsearch.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
