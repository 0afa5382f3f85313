"""`python -m segzoo.cli` is `segzoo`."""

import sys

from segzoo.cli import main

sys.exit(main())
