"""Run a recipe's ablation on a Ray cluster.

ray job submit --working-dir . -- python jobs/ablate.py RECIPE [PATH=VALUE]...
"""

import sys

from encsearch.cli.main import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
