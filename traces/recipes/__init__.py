"""Recipes of the shipped traces: text, tokenizer, training, recording. `python -m traces.recipes --help`."""
