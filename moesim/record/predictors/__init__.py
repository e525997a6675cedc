"""Predictors: what a token's next experts will be, said before the router that chooses them has run.

One predictor, one file; each opens with its paper, its formula and the instant at which it is known.
"""
