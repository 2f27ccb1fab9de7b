"""Go on with a training, a sweep or an ablation on a Ray cluster; FOLDER is one that every node sees.

ray job submit --working-dir . -- python jobs/resume.py FOLDER [PATH=VALUE]...
"""

import sys

from encsearch.cli.main import main

if __name__ == "__main__":
    main(["resume", *sys.argv[1:]])
