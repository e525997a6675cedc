"""Names that an attacker chose stay text in a report: the page's elements are those of a page with harmless names."""

from html.parser import HTMLParser

import pyarrow as pa

from moesim.report import write_report
from moesim.result import SCHEMA
from tests.report.test_report import row, sweep_of, text_of

HOSTILE = {
    "element": "<script>alert(1)</script>",
    "attribute": "\"><img src=x onerror='alert(1)'>",
    "single quotes": "' onmouseover='alert(1)",
    "end of the title": "</title></style></script><svg/onload=alert(1)>",
    "end of a comment": "--><iframe src=javascript:alert(1)>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "entity": "&lt;b&gt;&#x3c;",
    "mathtext": r"$\frac{1}{$",
    "left to right": "\u202egnp.exe",
    "surrogate-free unicode": "\u2028\ufeffé𝕏",
}
TEXTS = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
KEPT = {"policy", "configuration"}
"""A policy's name is looked up, and the configuration is JSON."""


class Elements(HTMLParser):
    """Every start tag with its attributes' names, except what only holds a picture's data."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(sorted(name for name, _ in attributes))))


def page_with(folder, names):
    """Two runs for each name, which stands in every text of both."""
    rows = []
    for name in names:
        texts = dict.fromkeys([text for text in TEXTS if text not in KEPT], name)
        rows += [row("lru", 0.25, 80.0, **texts), row("fifo", 0.5, 60.0, **texts)]
    return write_report(sweep_of(folder, rows, title=names[0], name=names[1]))


def elements(page):
    parser = Elements()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


def test_hostile_names_add_no_element_and_no_attribute(tmp_path):
    names = list(HOSTILE.values())
    page = page_with(tmp_path / "hostile", names)
    harmless = page_with(tmp_path / "harmless", [f"x{number}" for number in range(len(names))])
    assert elements(page) == elements(harmless)
    shown = text_of(page)
    for name in names:
        assert name in shown, "it is shown, as text"
