"""Rules of the role `evict`: one rule, one file."""
