"""A figure with its range and its source: the honest form of every number about a machine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

End = Literal["centre", "fast", "slow"]


class Quantity(BaseModel):
    """`value` is the centre, `low` to `high` what the sources allow; the unit is in the name of whatever holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    source: str

    @model_validator(mode="after")
    def _ordered(self) -> "Quantity":
        if not 0 <= self.low <= self.value <= self.high:
            raise ValueError(f"expected 0 <= low <= value <= high, not {self.low:g}, {self.value:g}, {self.high:g}")
        return self

    def at(self, end: End, *, more_is_faster: bool) -> float:
        """The centre, or the end of the range at which runs are faster or slower."""
        if end == "centre":
            return self.value
        return self.high if (end == "fast") == more_is_faster else self.low


def exact(value: float, source: str) -> Quantity:
    """A figure without a range."""
    return Quantity(value=value, low=value, high=value, source=source)
