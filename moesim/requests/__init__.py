"""A stream of requests served with continuous batching: who waits how long under load.

Requests arrive by a clock (`arrivals`), each replays one recorded request of a trace (`recorded`), and a scheduler
forms the next step at every step boundary from whoever is there (`scheduler`). `latency` reports what came of it.
"""
