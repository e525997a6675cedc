"""What the page consists of: sections of sentences, pictures, tables and facts. A section without any says so."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Entry:
    """What stands in a field of a table; `mark` colours it."""

    text: str
    mark: Literal["", "good", "poor", "bad"] = ""


@dataclass(frozen=True)
class Table:
    """Rows under one line of headings, in groups with a heading each (which may be empty)."""

    columns: list[str]
    groups: list[tuple[str, list[list[Entry]]]]

    @classmethod
    def plain(cls, columns: list[str], rows: list[list[Entry]]) -> "Table":
        """A table without groups."""
        return cls(columns, [("", rows)])


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn: what it shows, and its SVG."""

    title: str
    svg: bytes


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    caption: str
    sentences: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.sentences or self.pictures or self.tables or self.facts)
