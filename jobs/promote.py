"""Promote the best model of a run from a Ray cluster.

ray job submit --working-dir . -- python jobs/promote.py FOLDER|RUN_ID
"""

import sys

from encsearch.cli.main import main

if __name__ == "__main__":
    main(["promote", *sys.argv[1:]])
