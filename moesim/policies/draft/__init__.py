"""Rules of the role `draft`: one rule, one file."""
