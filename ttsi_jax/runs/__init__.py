"""Runs on disk: records, resumption, summaries, comparison and reports; nothing here needs JAX but `environment`,
and `paper` for the settings of a preset."""
