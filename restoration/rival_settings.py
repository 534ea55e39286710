"""Settings of the other methods, chosen on the validation split, and the table that holds them."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.files import write_csv
from psf.errors import InputError
from restoration.compared import Method, Trial
from restoration.scores import snr_db

COLUMNS = ("method", "setting", "photons", "value", "snr_gain_db", "images", "chosen")


def gains_of_settings(trial: Trial, methods: dict[str, Method]) -> list[dict[str, object]]:
    """SNR gain over the blurred input by every setting of every method: rows."""
    truth, before = trial.scene.truth, snr_db(trial.image, trial.scene.truth)
    rows = []
    for name, method in methods.items():
        if method.several:
            found = method.several(trial, method.settings)
        else:
            found = (method.restore(trial, value) for value in method.settings)
        for value, image in zip(method.settings, found, strict=True):
            row = {"method": name, "setting": method.setting, "value": value}
            rows.append(row | {"snr_gain_db": snr_db(image, truth) - before})
    return rows


def choose_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean gain of every setting over the images, and which is the best by method and photons."""
    keys = ["method", "setting", "photons", "value"]
    table = rows.groupby(keys, sort=False)["snr_gain_db"].agg(["mean", "count"]).reset_index()
    table = table.rename(columns={"mean": "snr_gain_db", "count": "images"})
    best = table.groupby(["method", "photons"])["snr_gain_db"].transform("max")
    return table.assign(chosen=table["snr_gain_db"] == best)[list(COLUMNS)]


def chosen_at_an_edge(table: pd.DataFrame) -> list[str]:
    """Methods whose best setting is the least or the largest that was tried, with the setting.

    A count of 1 is not reported: there is none below it.
    """
    found = []
    for (method, photons), part in table.groupby(["method", "photons"], sort=False):
        value = part.loc[part["chosen"], "value"].iloc[0]
        least = part["value"].min()
        if value == part["value"].max() or (value == least and least != 1):
            found.append(f"{method}, {photons:g} photons: {value:g}")
    return found


def write_settings(path: Path, table: pd.DataFrame) -> None:
    """Write the table of all settings that were tried."""
    write_csv(path, table)


def read_settings(path: Path, methods: dict[str, Method]) -> pd.DataFrame:
    """Chosen settings of a table.

    Raises
    ------
    InputError
        If there is no such table, or it lacks one of the methods.
    """
    command = "run figure_deconvolution.py --tune"
    if not path.is_file():
        raise InputError(f"--settings {path} does not exist; {command}.")
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise InputError(f"--settings {path} is no table ({error}); {command}.") from error
    if missing := set(COLUMNS) - set(table.columns):
        raise InputError(f"--settings {path} lacks columns {sorted(missing)}; {command}.")
    needed = [name for name, method in methods.items() if method.settings]
    table = table[table["chosen"]]
    if missing := [name for name in needed if name not in set(table["method"])]:
        raise InputError(f"--settings {path} lacks {missing[0]}; {command}.")
    return table


def setting_of(table: pd.DataFrame, name: str, method: Method, photons: float) -> float | None:
    """Chosen setting for the nearest number of photons that was tuned; None without settings."""
    if not method.settings:
        return None
    part = table[table["method"] == name]
    ratio = np.abs(np.log(part["photons"] / photons))
    return float(part.loc[ratio.idxmin(), "value"])
