"""Runs on disk: records, resumption, summaries, comparison and reports; nothing here needs JAX but `environment`."""
