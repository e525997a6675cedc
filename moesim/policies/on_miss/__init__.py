"""Rules of the role `on_miss`: one rule, one file."""
