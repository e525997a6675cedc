"""A draft runs ahead and names experts; the model itself verifies what it drafted (MoE-SpeQ, arXiv 2511.14102)."""
