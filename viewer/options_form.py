"""The part of the window in which network and optics are chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QComboBox, QFileDialog, QGridLayout, QLabel, QLineEdit, QWidget

from micrographs.metadata import OpticsFacts
from models.checkpoint import ADVISED, SHIPPED, shipped_names
from psf.errors import InputError

FIELDS = {
    "na": "NA",
    "wavelength_um": "wavelength (µm)",
    "pixel_size_um": "pixel size (µm)",
    "refractive_index": "refractive index",
}
OTHER = "choose a folder…"
CARD_PX = 40  # height of the first paragraph of a card: two lines


class OptionsForm(QWidget):
    """Network and optics; what the file states stands in grey in the empty fields."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.card = QComboBox(), QLabel()
        self.network.addItems([*shipped_names(), OTHER])
        self.network.setCurrentText(ADVISED)
        self.network.currentTextChanged.connect(self._network_chosen)
        self.card.setWordWrap(True)
        self.card.setMinimumHeight(CARD_PX)
        self.fields = {name: QLineEdit() for name in FIELDS}
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QLabel("network"), 0, 0)
        layout.addWidget(self.network, 0, 1, 1, 3)
        layout.addWidget(self.card, 1, 0, 1, 4)
        for number, (name, field) in enumerate(self.fields.items()):
            row, pair = divmod(number, 2)
            layout.addWidget(QLabel(FIELDS[name]), 2 + row, 2 * pair)
            layout.addWidget(field, 2 + row, 2 * pair + 1)
        self.show_facts(OpticsFacts())
        self._network_chosen(ADVISED)

    def fill(self, values: Mapping[str, float | None]) -> None:
        """Type numbers by their names into the fields."""
        for name, value in values.items():
            self.fields[name].setText("" if value is None else f"{value:g}")

    def show_facts(self, facts: OpticsFacts) -> None:
        """Show what a file states of its optics; what was typed stays."""
        for name, field in self.fields.items():
            value, source = getattr(facts, name), facts.sources.get(name, "the file")
            field.setPlaceholderText("needed" if value is None else f"{value:g} ({source})")
            field.setToolTip("" if value is None else f"{value:g}, from {source}")

    def options(self) -> dict[str, Any]:
        """Options of the scripts: network, and the optics that were typed.

        Raises
        ------
        InputError
            If a field holds no number.
        """
        found: dict[str, Any] = {"checkpoint": Path(self.network.currentText())}
        for name, field in self.fields.items():
            text = field.text().strip().replace(",", ".")
            try:
                found[name] = float(text) if text else None
            except ValueError as error:
                raise InputError(f"{FIELDS[name]} is '{field.text()}'; give a number.") from error
        return found

    def _network_chosen(self, name: str) -> None:
        if name == OTHER:
            folder = QFileDialog.getExistingDirectory(self, "Folder of train.py")
            name = folder or ADVISED
            if self.network.findText(name) < 0:
                self.network.insertItem(0, name)
            self.network.setCurrentText(name)
            return
        self.card.setText(first_lines(name))


def first_lines(name: str) -> str:
    """The first paragraph of a network's card."""
    folder = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)
    card = folder / "README.md"
    if not card.is_file():
        return ""
    paragraphs = card.read_text(encoding="utf-8").split("\n\n")
    return paragraphs[1].partition(" Load it with")[0] if len(paragraphs) > 1 else ""
