"""The folder of figures of one report."""

from pathlib import Path

from matplotlib.figure import Figure

from hw_validate.report.section import Picture
from hw_validate.report.words import file_words
from moesim.errors import InputError
from moesim.report.figures.canvas import save


class Gallery:
    """Writes figures into a folder, and removes what an earlier report left there."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the folder cannot be made."""
        self._folder = folder
        self._names: set[str] = set()
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None

    def add(self, name: str, title: str, figure: Figure | None) -> list[Picture]:
        """Save a figure as NAME.svg and NAME.png; nothing for None."""
        if figure is None:
            return []
        name = file_words(name)
        self._names.add(name)
        return [Picture(title, save(figure, self._folder, name))]

    def remove_others(self) -> None:
        """Remove the figures that this report has not drawn."""
        for file in self._folder.glob("*.*"):
            if file.stem not in self._names and file.suffix in (".svg", ".png"):
                file.unlink(missing_ok=True)
