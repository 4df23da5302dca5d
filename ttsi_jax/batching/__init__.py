"""From inputs to waves: length buckets, padded arrays, prefix caches, and the compiled programs that run on them."""
