"""Rules of the role `route`: one rule, one file."""
