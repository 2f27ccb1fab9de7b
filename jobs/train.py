"""Train a recipe on a Ray cluster.

ray job submit --working-dir . -- python jobs/train.py RECIPE [PATH=VALUE]...
"""

import sys

from encsearch.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
