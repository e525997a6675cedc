"""Speculation off: what the router chose is executed. The measure of the measurement, for its cost must be zero."""

from moesim.quality.modes.mode import Event, Execution, Mode


class TrueRouting(Mode):
    """The router's choice passes through the same hooks as that of every other mode, unchanged."""

    name = "true"

    def __init__(self, *, stepped: bool = False) -> None:
        self.stepped = stepped

    def execute(self, event: Event) -> Execution:
        """The router's choice."""
        return Execution(event.experts, event.weights)
