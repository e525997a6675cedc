"""Rules of the role `budget`: one rule, one file."""
