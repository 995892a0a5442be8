"""`python -m grr_coca` is the command line."""

import sys

from grr_coca.cli import main

sys.exit(main())
