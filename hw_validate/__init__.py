"""hw_validate: moesim's replay loop on a real GPU, to calibrate the simulator and to state its error.

    measurement.py   what a run on the real machine leaves: cells, their measurements, the machine
    cli.py           doctor, calibrate, run, report

This package needs the extra `hw` (torch); it imports `moesim`, never the other way round.
"""
