"""`python -m tract_trainer` is `tract`."""

import sys

from tract_trainer.cli import main

sys.exit(main())
