import sys

from ttsi_jax.cli import main

sys.exit(main())
