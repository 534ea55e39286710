"""Means over images of the scores of every method, and the figures that sum the experiment up."""

import math

import pandas as pd
from scipy.stats import t

from restoration.compared import BLIND, BLIND_BEST, DEEPINV, INPUT, ORACLE, OURS

HARM_DB = 0.1  # loss of SNR that counts as harm; smaller ones cannot be seen
MEANS = ("snr_gain_centre_db", "psnr_db", "psnr_centre_db", "ssim", "ssim_centre")
MEDIANS = ("frc_pair_um", "frc_truth_um", "seconds")  # a resolution may be infinite


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Scores by photons, kind of objects and method, with 95 % intervals over images.

    The kind "all" comes first. Intervals are those of Student's t.
    """
    kinds = [("all", table), *table.groupby("objects", sort=False)]
    lines = []
    for photons in table["photons"].unique():
        for objects, part in kinds:
            of_photons = part[part["photons"] == photons]
            for method, rows in of_photons.groupby("method", sort=False):
                line = {"photons": photons, "objects": objects, "method": method}
                lines.append(line | _scores(rows))
    return pd.DataFrame(lines)


def _scores(rows: pd.DataFrame) -> dict[str, float]:
    """Scores of one method over its images."""
    gains, sharp, count = rows["snr_gain_db"], rows["snr_gain_sharp_db"], len(rows)
    width = t.ppf(0.975, count - 1) / math.sqrt(count) if count > 1 else math.nan
    line = {"setting": rows["setting"].iloc[0], "images": count, "snr_gain_db": gains.mean()}
    line |= {"interval_95_db": width * gains.std(ddof=1), "worst_gain_db": gains.min()}
    line |= {"worse_than_input": int((gains < -HARM_DB).sum())}
    line |= {"worst_sharp_gain_db": sharp.min(), "sharp_harmed": int((sharp < -HARM_DB).sum())}
    return line | {n: rows[n].mean() for n in MEANS} | {n: rows[n].median() for n in MEDIANS}


def report(table: pd.DataFrame) -> None:
    """Print, by photons, the lead over the others, the loss to the true map, and the harm done."""
    for photons, part in table.groupby("photons", sort=False):
        gains = part.pivot(index="index", columns="method", values="snr_gain_db")
        ours, means = gains[OURS], gains.mean()
        best = max((INPUT, *BLIND), key=lambda name: means[name])
        loss = gains[ORACLE] - ours
        sharp = part.loc[part["method"] == OURS, "snr_gain_sharp_db"].dropna()
        print(f"{photons:g} photons, {len(ours)} images:")
        print(f"  lead over the best blind method ({best}): {_mean(ours - gains[best])}")
        if set(BLIND_BEST) <= set(gains):
            oracle = ours - gains[[INPUT, *BLIND_BEST]].max(axis=1)
            print(f"  lead over the blind method and setting that suit each image: {_mean(oracle)}")
        print(f"  loss against the true map: {_mean(loss)}, median {loss.median():.2f} dB")
        print(f"  worse than the input by more than {HARM_DB} dB: {(ours < -HARM_DB).sum()}")
        harmed = (sharp < -HARM_DB).sum()
        print(f"  sharp regions that lose more than {HARM_DB} dB: {harmed} of {len(sharp)}")
        if DEEPINV in gains:
            print(f"  ahead of {DEEPINV}: {(ours > gains[DEEPINV]).sum()} of {len(ours)}")


def _mean(values: pd.Series) -> str:
    """Mean of differences over images with its 95 % interval."""
    count = len(values)
    if count < 2:
        return f"{values.mean():.2f} dB"
    width = t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    return f"{values.mean():.2f} +- {width:.2f} dB"
