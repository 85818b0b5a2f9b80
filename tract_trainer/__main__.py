"""`python -m tract_trainer` is `tract`."""

import sys

from tract_trainer.cli.main import main

sys.exit(main())
