"""`python -m ntk_jax`: the command line."""

import sys

from ntk_jax.cli.main import main

sys.exit(main())
