"""How a step is taken, for every front end: buckets of layers by dtype, columns, passes, counters, statistics."""
