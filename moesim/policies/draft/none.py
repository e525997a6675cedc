"""Draft nothing: every decode step computes the trace's next tokens."""

from moesim.policies.registry import register
from moesim.policies.roles import Draft


@register("draft", "none")
class NoDraft(Draft):
    """No draft."""

    def length(self) -> int:
        return 0
