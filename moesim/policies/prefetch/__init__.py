"""Rules of the role `prefetch`: one rule, one file."""
