"""The page: one file that needs nothing else. All text from data is escaped by the template engine."""

import base64

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from hw_validate.report.section import Section


def render(title: str, headline: list[str], sections: list[Section]) -> str:
    """The page as HTML; its style is that of the simulator's own report."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("hw_validate.report"), PackageLoader("moesim.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("comparison.html").render(title=title, headline=headline, sections=sections)
