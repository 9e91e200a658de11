"""The comparison: the same job, done by taskd and by others. ``make bench-peers``."""
