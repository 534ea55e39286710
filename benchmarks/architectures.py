"""R^2 of each architecture against the patches it has seen and the seconds it was trained.

    python benchmarks/architectures.py --data data/zernike1d --patches 300000
    python benchmarks/architectures.py --data data/zernike1d --collect-only runs/resnet*

Trains each network with `train.py --fresh` on the same stream of patches: same data folder, same
seed. Then it scores the network on the test patches. Writes results/architectures.csv, from which
figure_architectures.py draws, and the table results/architectures.md. The validation rows come from
the metrics.csv of a run, one per epoch. The test rows score its saved weights, with 95 % intervals
over source images. The same command continues after a stop. With --collect-only the tables are made
of runs that exist already, finished or not.
"""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, next_command, pick_device, run
from common.files import read_json, whole_file, write_csv
from models.checkpoint import load_estimator
from models.data import CONDITIONS, PatchSet, read_data_config
from models.estimator import Estimator
from models.scoring import score_condition, table_rows
from psf.errors import InputError

ROOT = Path(__file__).parents[1]
NETWORKS = ("spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50")
TABLE, TEXT = "architectures.csv", "architectures.md"  # names in the folder --out
BATCH = 64  # patches that are scored at once; does not change a score
# Settings of a run that may differ between networks: the length of the training.
LENGTH = ("epochs", "epoch_patches", "max_minutes")


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    data: Path  # folder of generate_training_set.py with validation and test patches
    networks: tuple[str, ...] = NETWORKS  # networks to train, as --model of train.py
    patches: int = 300_000  # training patches of each network, rounded up to whole steps
    patches_of: dict[str, int] = field(default_factory=dict)  # other numbers: resnet50 100000
    epoch_patches: int = 20_480  # at most so many training patches between two validations
    collect_only: tuple[Path, ...] = ()  # folders of train.py to read instead of training
    runs: Path = Path("runs/architectures")  # folder of the new runs, one folder per network
    test_patches: int | None = None  # score only the first of them (default: all)
    seed: int = 0  # of weights and stream, the same for all networks
    device: str = "auto"  # auto, cpu, cuda or mps
    out: Path = Path("results")  # folder of the tables


@dataclass(frozen=True)
class Run:
    """A training run of one network."""

    folder: Path
    description: dict[str, Any]  # content of run_config.json
    metrics: pd.DataFrame  # content of metrics.csv, a row per epoch

    @property
    def network(self) -> str:
        """Name of the architecture."""
        return self.description["architecture"]


def train(config: Config, network: str) -> None:
    """Train a network with train.py, unless its run is finished."""
    folder = config.runs / network
    if (folder / "run.json").exists():
        print(f"{network}: already trained ({folder})")
        return
    patches = config.patches_of.get(network, config.patches)
    epochs = -(-patches // config.epoch_patches)
    epoch = -(-patches // epochs)
    options = {"data": config.data, "out": folder, "model": network, "epoch-patches": epoch}
    options |= {"epochs": epochs, "seed": config.seed, "device": config.device}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "train.py"), "--fresh", *words]
    print(f"{network}: {patches:,} patches", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise InputError(
            f"the training of {network} stopped with exit code {code}; its message is above. The "
            "same command continues."
        )


def read_run(folder: Path, data: dict[str, Any]) -> Run:
    """Run of train.py, which must have been trained with the settings of the data folder.

    Raises
    ------
    InputError
        If there is no such run, it has no epoch yet, or it was trained on other data.
    """
    if not (folder / "metrics.csv").is_file():
        raise InputError(f"{folder} holds no run with a finished epoch; train it with train.py.")
    description = read_json(folder / "run_config.json", "training run")
    trained = description["data"]
    # The stored training patches do not matter: the stream is the same without them.
    different = sorted(
        key
        for key in (trained.keys() | data.keys()) - {"patches"}
        if trained.get(key) != data.get(key)
    )
    if different:
        raise InputError(
            f"{folder} was trained on other data than --data ({', '.join(different)} differ); "
            "give the data folder of the runs."
        )
    return Run(folder, description, pd.read_csv(folder / "metrics.csv"))


def check_runs(runs: list[Run]) -> None:
    """Refuse two runs of the same network, and warn of runs with other settings.

    Raises
    ------
    InputError
        If two runs have the same architecture.
    """
    seen: dict[str, Run] = {}
    for one in runs:
        if one.network in seen:
            raise InputError(
                f"{seen[one.network].folder} and {one.folder} are both runs of {one.network}; give "
                "one of them."
            )
        seen[one.network] = one
        different = sorted(
            key
            for key, value in stream_settings(one).items()
            if stream_settings(runs[0]).get(key, value) != value
        )
        if different:
            warnings.warn(
                f"{one.folder} and {runs[0].folder} differ in {', '.join(different)}; their "
                "comparison is not fair.",
                stacklevel=2,
            )


def stream_settings(one: Run) -> dict[str, Any]:
    """Settings that must be the same in all runs: all but the network and the length."""
    settings = {k: v for k, v in one.description["settings"].items() if k not in LENGTH}
    return {**settings, **{k: one.description[k] for k in ("exposure", "start_from")}}


def run_facts(one: Run, estimator: Estimator) -> dict[str, Any]:
    """Columns of the table that are the same in all rows of a run."""
    return {
        "network": one.network,
        "weights": sum(p.numel() for p in estimator.network.parameters()),
        "psf_model": estimator.psf_model.name,
        "patches": "fresh" if one.description["settings"].get("fresh") else "stored",
        "processor": estimator.config["run"].get("processor", ""),
        "finished": (one.folder / "run.json").exists(),
    }


def validation_rows(one: Run, facts: dict[str, Any], count: int, images: int) -> Iterator[dict]:
    """Rows of the table for the epochs of a run, scored on `count` patches of `images` images."""
    for epoch in one.metrics.to_dict("records"):
        for parameter in one.description["data"]["label_names"]:
            for condition in CONDITIONS:
                yield {
                    **facts,
                    "split": "validation",
                    "patches_seen": int(epoch["patches_seen"]),
                    "seconds": 60 * epoch["minutes"],
                    "parameter": parameter,
                    "condition": condition.name,
                    "source_images": images,
                    "scored_patches": count,
                    "r2": epoch[f"r2_{parameter}_{condition.name}"],
                    "r2_low": np.nan,
                    "r2_high": np.nan,
                }


def test_rows(facts: dict[str, Any], estimator: Estimator, test_set: PatchSet) -> Iterator[dict]:
    """Rows of the table for the saved weights of a run, on the test patches."""
    made = estimator.config["run"]
    for condition in CONDITIONS:
        scored = score_condition(facts["network"], estimator, test_set, condition, BATCH)
        by_parameter: dict[str, dict[str, Any]] = {}
        for row in table_rows(scored, {}, test_set.model):
            by_parameter.setdefault(row["parameter"], row)  # the first one is that of all images
        for parameter, row in by_parameter.items():
            yield {
                **facts,
                "split": "test",
                "patches_seen": made["patches_seen"],
                "seconds": 60 * made["minutes"],
                "parameter": parameter,
                "condition": condition.name,
                "source_images": row["source_images"],
                "scored_patches": row["patches"],
                **{name: row[name] for name in ("r2", "r2_low", "r2_high")},
            }


def known_test_rows(path: Path, facts: dict[str, Any], made: dict[str, Any], count: int) -> list:
    """Test rows that an earlier table has for the same weights and patches."""
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    same = (table["split"] == "test") & (table["network"] == facts["network"])
    same &= (table["patches_seen"] == made["patches_seen"]) & (table["scored_patches"] == count)
    same &= np.isclose(table["seconds"], 60 * made["minutes"], rtol=1e-6)
    rows = table[same].to_dict("records")
    return [{**row, **facts} for row in rows]


def collect(config: Config, folders: list[Path]) -> pd.DataFrame:
    """Table of the runs in these folders, whose weights are scored where that is not done yet."""
    data = read_data_config(config.data)
    runs = [read_run(folder, data) for folder in folders]
    check_runs(runs)
    test_set = PatchSet(config.data, "test", config.test_patches)
    rows: list[dict[str, Any]] = []
    for one in runs:
        estimator = load_estimator(one.folder, pick_device(config.device))
        facts = run_facts(one, estimator)
        limit = one.description["settings"]["validation_patches"]
        scored = PatchSet(config.data, "validation", limit)
        images = len(np.unique(scored.source_names[scored.has_content.numpy()]))
        rows += validation_rows(one, facts, int(scored.has_content.sum()), images)
        count = int(test_set.has_content.sum())
        tested = known_test_rows(config.out / TABLE, facts, estimator.config["run"], count)
        if not tested:
            print(f"{one.network}: scoring {test_set.count} test patches", flush=True)
            tested = list(test_rows(facts, estimator, test_set))
        rows += tested
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Text of architectures.md: a row per network and parameter, scored on the test patches."""
    tested = table[table["split"] == "test"]
    conditions = list(dict.fromkeys(tested["condition"]))
    first = tested.iloc[0]
    lines = [
        f"R² on {first['scored_patches']} test patches, with 95 % intervals over their "
        f"{first['source_images']} source images.",
        "",
        f"| network | weights | patches seen | minutes | parameter | {' | '.join(conditions)} |",
        "|---|---|---|---|---|" + "---|" * len(conditions),
    ]
    for (network, parameter), rows in tested.groupby(["network", "parameter"], sort=False):
        one = rows.iloc[0]
        cells = [f"{r.r2:.3f} ({r.r2_low:.3f} to {r.r2_high:.3f})" for r in rows.itertuples()]
        lines.append(
            f"| `{network}` | {one['weights'] / 1e6:.1f} M | {one['patches_seen']:,} | "
            f"{one['seconds'] / 60:.1f} | {parameter} | {' | '.join(cells)} |"
        )
    processors = ", ".join(dict.fromkeys(tested["processor"]))
    return "\n".join([*lines, "", f"Trained on {processors}."]) + "\n"


def write_tables(config: Config, folders: list[Path]) -> str:
    """Collect the runs in these folders and write the tables; the text of architectures.md."""
    table = collect(config, folders)
    write_csv(config.out / TABLE, table, "%.8g")
    text = markdown(table)
    with whole_file(config.out / TEXT) as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def main(config: Config) -> None:
    """Train and score the networks one after the other, or score runs that exist."""
    unknown = [name for name in (*config.networks, *config.patches_of) if name not in NETWORKS]
    if unknown:
        raise InputError(f"there is no network {unknown[0]}; give {', '.join(NETWORKS)}.")
    for number in (config.patches, config.epoch_patches, *config.patches_of.values()):
        if number < 1:
            raise InputError(f"{number} patches cannot train a network; give 1 or more.")
    if not config.networks:
        raise InputError(f"--networks is empty; give some of {', '.join(NETWORKS)}.")
    if config.test_patches is not None and config.test_patches < 2:
        raise InputError(f"--test-patches is {config.test_patches}; give 2 or more.")
    keep_freed_memory()
    if config.collect_only:
        text = write_tables(config, list(config.collect_only))
    else:
        for network in config.networks:
            train(config, network)
            folders = [config.runs / name for name in config.networks]
            text = write_tables(config, [one for one in folders if (one / "run.json").exists()])
    print(text)
    print(f"wrote {config.out / TABLE} and {TEXT}")
    print(next_command("figure_architectures.py", ("--results", config.out)))


if __name__ == "__main__":
    run(Config, main, __doc__)
