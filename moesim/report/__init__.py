"""From a sweep's results to figures and one self-contained page."""

from pathlib import Path

from moesim.atomic_write import atomic_write


def write_report(out: Path) -> Path:
    """Draw the figures of a sweep's output folder and write its report.html; returns the page.

    Equal results give equal bytes.

    Raises:
        InputError: the folder does not hold a sweep's results, or cannot be written.
    """
    # matplotlib is slow to import and only needed here.
    import matplotlib as mpl

    from moesim.errors import InputError
    from moesim.report.figures import FIGURES
    from moesim.report.figures.canvas import STYLE, save
    from moesim.report.page import render
    from moesim.report.rows import read_results

    results = read_results(out)
    folder = out / "figures"
    try:
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("*.*"):
            stale.unlink()
        with mpl.rc_context(STYLE):
            drawn = {name: figure for name, draw in FIGURES.items() if (figure := draw(results)) is not None}
            pictures = {name: save(figure, folder, name) for name, figure in drawn.items()}
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None
    page = out / "report.html"
    with atomic_write(page) as file:
        file.write(render(results, pictures).encode())
    return page
