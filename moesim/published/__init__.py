"""What papers report, held against runs of our own: claims are data (configs/published/), verdicts are computed.

    system.py    the schema of one paper's file
    traces.py    recorded traces where there are some, labelled synthetic ones elsewhere
    verdict.py   when a measured value agrees with a published one
    reproduce.py the runs that the claims compare, and what comes of each
    page.py      docs/published.md
"""
