"""`python jobs/refresh.py SPEC …` is `corpus-embed refresh SPEC …`: what cron calls from a
checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "refresh")
    main()
