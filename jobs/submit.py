"""`python jobs/submit.py SPEC …` is `corpus-embed submit SPEC …`, for machines with a checkout and
no console script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "submit")
    main()
