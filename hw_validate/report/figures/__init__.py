"""The comparison's figures: one kind of figure, one file, in the style of moesim's report."""
