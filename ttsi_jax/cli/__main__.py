from ttsi_jax.cli import entry

entry()
