"""Microbenchmarks of one machine, and the hardware profile that they make.

    samples.py   repeated readings: centre and spread
    link.py      copies by size, isolated and queued, pinned and pageable, whole and in pieces, under load
    host.py      what each call of the device costs the host, and the way back to it
    loop.py      the replay loop itself
    kernels.py   every kernel group by shape and batch
    processor.py experts on the CPU, and memory bandwidth with and without copies
    profile.py   all of it as configs/hardware/<gpu>.yaml
    on_cpu.py    the same figures where there is no GPU

No time of a token is ever looked at here.
"""
