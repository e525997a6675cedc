"""The sections of the page, in the order in which they are read."""

from collections.abc import Sequence

from hw_validate.agreement import grouped
from hw_validate.comparison import Row
from hw_validate.report.accuracy import cells_section, error_section
from hw_validate.report.basis import basis_section
from hw_validate.report.claim import claim_section
from hw_validate.report.figures import energy, parity, time_classes, token_timeline
from hw_validate.report.gallery import Gallery
from hw_validate.report.limits import baseline_section, limits_section
from hw_validate.report.power import power_section
from hw_validate.report.sameness import decisions_section, ranking_section
from hw_validate.report.section import Picture, Section
from hw_validate.report.tokens import timeline_section, title_of
from hw_validate.report.words import model_words, setting_words
from hw_validate.validation import Validation


def sections_of(validation: Validation, rows: Sequence[Row], names: dict[str, str], gallery: Gallery) -> list[Section]:
    """Every section, with its figures drawn into the gallery; `names` gives words for cells that files name."""
    return [
        error_section(rows, gallery.add("parity", "", parity.draw(rows))),
        cells_section(rows),
        _time_section(rows, gallery),
        ranking_section(rows),
        decisions_section(rows),
        timeline_section(_tokens(validation, names, gallery)),
        limits_section(validation.limits),
        baseline_section(validation.limits),
        claim_section(rows),
        power_section(rows, gallery.add("energy", "", energy.draw(rows))),
        basis_section(rows, validation.machine),
    ]


def _time_section(rows: Sequence[Row], gallery: Gallery) -> Section:
    pictures = []
    for (model, phase, batch), group in grouped(rows, ("model", "phase", "batch_tokens")).items():
        title = f"{model_words(str(model))}, {setting_words(phase, batch)}"
        pictures += gallery.add(f"time-{model}-{phase}-batch{batch}", title, time_classes.draw(group))
    return Section(
        "Where the time goes, in both worlds",
        "Each instant belongs to the first class that applies. The classes were measured on separate steps with "
        "timestamps, the mean time that counts on bare steps; where a bar and its mark differ, the timestamps cost it.",
        pictures=pictures,
    )


def _tokens(validation: Validation, names: dict[str, str], gallery: Gallery) -> list[Picture]:
    if validation.timelines is None:
        return []
    pictures = []
    for number, (cell, slices) in enumerate(token_timeline.cells_of(validation.timelines).items(), start=1):
        pictures += gallery.add(f"token-{number}", title_of(slices, names.get(cell, cell)), token_timeline.draw(slices))
    return pictures
