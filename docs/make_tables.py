"""Insert the tables of results into README.md and docs/*.md.

    python docs/make_tables.py           # rewrite the documents
    python docs/make_tables.py --check   # only say which tables differ

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->`, which no reader
sees. Its numbers come from CSV files of results/. The function of the same name in the modules
beside this one says which. Tables of trials whose code is not kept are copied from
results/recorded/NAME.csv.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import network_tables as networks
import overview_tables as overview
import restoration_tables as restoration
import speed_tables as speed
from csv_tables import RECORDED, RESULTS, Table, recorded

from common.command import run
from common.files import whole_file
from psf.errors import InputError

ROOT = RESULTS.parent
PLACE = re.compile(r"<!-- table: (?P<name>\w+) -->\n(?P<table>.*?)<!-- end of table -->", re.DOTALL)
BUILDERS = {
    build.__name__: build
    for build in (
        networks.shipped_networks,
        networks.reference_optics,
        networks.seeds,
        overview.beside_the_paper,
        networks.architectures,
        networks.cross_domain,
        networks.more_training,
        networks.depth,
        networks.dome,
        networks.drift,
        networks.real_stacks,
        networks.stack_means,
        networks.specimens,
        networks.images,
        networks.objectives,
        networks.na_from_the_image,
        networks.bayes_difference,
        restoration.restoration_1000,
        restoration.restoration_100,
        restoration.restoration_by_object,
        restoration.restoration_aims,
        restoration.processed_images,
        restoration.real_tissue,
        restoration.held_out_photons,
        speed.psf_programs,
        speed.psf_speed,
        speed.training_speed,
        speed.mapping_speed,
        speed.restoration_speed,
        speed.restoration_quality,
        speed.large_restoration,
        speed.export_speed,
        speed.large_image,
        overview.ten_numbers,
    )
}


@dataclass(frozen=True)
class Config:
    """What to do with tables that differ from their CSV files."""

    check: bool = False  # only name the tables that differ, and end with exit code 1


def documents() -> list[Path]:
    """Markdown files that hold tables of results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def table_of(name: str) -> Table:
    """The table of a name, from a builder or from results/recorded/NAME.csv."""
    if name in BUILDERS:
        return BUILDERS[name]()
    if (RESULTS / RECORDED / f"{name}.csv").is_file():
        return recorded(name)
    raise InputError(
        f"there is no table '{name}': write a function of that name in docs/, or "
        f"results/recorded/{name}.csv."
    )


def renewed(text: str) -> str:
    """The text of a document with every table made again."""

    def insert(place: re.Match) -> str:
        name = place["name"]
        return f"<!-- table: {name} -->\n{table_of(name).markdown()}\n<!-- end of table -->"

    return PLACE.sub(insert, text)


def differing(text: str) -> list[str]:
    """Names of the tables of a document that differ from their CSV files."""
    return [
        place["name"]
        for place in PLACE.finditer(text)
        if place["table"] != table_of(place["name"]).markdown() + "\n"
    ]


def report(paths: Iterable[Path]) -> bool:
    """Print the tables that differ; whether there are any."""
    found = False
    for path in paths:
        for name in differing(path.read_text("utf-8")):
            print(f"{path.relative_to(ROOT)}: table '{name}' differs from its CSV files.")
            found = True
    return found


def main(config: Config) -> None:
    """Rewrite the documents, or name the tables that differ."""
    if config.check:
        if report(documents()):
            print("next: python docs/make_tables.py")
            sys.exit(1)
        return
    for path in documents():
        old = path.read_text("utf-8")
        new = renewed(old)
        if new != old:
            with whole_file(path) as partial:
                partial.write_text(new, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run(Config, main, __doc__)
