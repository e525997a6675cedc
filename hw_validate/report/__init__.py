"""From a validation folder to comparison.parquet, figures, one self-contained page and a timeline of both worlds."""

from pathlib import Path

from moesim.atomic_write import atomic_write


def write_comparison_report(folder: Path) -> Path:
    """Compare whatever cells a validation folder holds so far, and write the report beside them; returns the page.

    Writes comparison.parquet, figures/, report.html and, if there are timelines, timeline.perfetto.json. Equal
    measurements give equal bytes; every file is written whole or not at all.

    Raises:
        InputError: the folder does not hold a validation, or cannot be written.
    """
    # matplotlib is slow to import and only needed here.
    import matplotlib as mpl

    from hw_validate.comparison import rows_of, write_comparison
    from hw_validate.report.basis import headline, machine_words
    from hw_validate.report.contents import sections_of
    from hw_validate.report.gallery import Gallery
    from hw_validate.report.page import render
    from hw_validate.report.tokens import both_worlds
    from hw_validate.report.words import cell_words, without_channel
    from hw_validate.validation import read_validation
    from moesim.report.figures.canvas import STYLE

    validation = read_validation(folder)
    rows = rows_of(validation)
    write_comparison(rows, folder / "comparison.parquet")
    rows = [{**row, "policy": without_channel(row["policy"])} for row in rows]
    names = {
        each.cell.name: cell_words({**each.cell.model_dump(), "policy": without_channel(each.cell.policy)})
        for each in validation.measurements
    }
    if validation.timelines is not None:
        with atomic_write(folder / "timeline.perfetto.json") as file:
            file.write(both_worlds(validation.timelines, names))
    gallery = Gallery(folder / "figures")
    with mpl.rc_context(STYLE):
        sections = sections_of(validation, rows, names, gallery)
    page = folder / "report.html"
    title = f"Simulated and measured: {machine_words(validation.machine)}"
    with atomic_write(page) as file:
        file.write(render(title, headline(rows, validation.machine), sections).encode())
    gallery.remove_others()
    return page
