"""What a lossy policy costs: the model itself run with its routing replaced, on held-out text.

`moesim quality` needs the extra `record` (torch and transformers); `stored.py` reads its results and needs neither.

    text.py             held-out text as blocks of tokens
    replaced_routing.py the hooks through which a mode takes the place of the routers
    router_rule.py      what a router would choose from given logits
    foresight.py        predictors, as logits of a coming router
    resident_pool.py    which experts are resident while a text is decoded
    modes/              one way of executing experts, one file
    measure.py          perplexity, divergence and agreement of a mode beside the true model
    intervals.py        bootstrap intervals over blocks
    plan.py             the modes that a run measures
    stored.py           the file that a run leaves, and the cost of a policy looked up in it
"""
