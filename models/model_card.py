"""Model card of a checkpoint: what the network is for, and how it was made."""

import math
from collections.abc import Mapping
from typing import Any


def model_card(config: Mapping[str, Any]) -> str:
    """Text of a checkpoint's README.md."""
    data, run = config["data"], config["run"]
    ranges = zip(config["label_names"], config["label_ranges"], strict=True)
    unit = config["label_unit"]
    optics = [f"| {k} | {interval_text(*v, '')} |" for k, v in config["optics_limits"].items()]
    scores = config["validation"]
    fresh = " of fresh patches" if run.get("fresh") else ""
    lines = [
        f"# {config['psf_model']['name']}: {config['architecture']}",
        "",
        f"Reads the PSF parameters of a {config['patch_size']} x {config['patch_size']} px patch: "
        + ", ".join(f"{name} ({interval_text(*limits, unit)})" for name, limits in ranges)
        + ". Load it with `models.load_estimator(FOLDER)`.",
        "",
        "## Holds for",
        "",
        "| optics | trained on |",
        "|---|---|",
        *optics,
        "",
        "Outside these limits `predict` warns. The network is trained on widefield images of "
        f"{objects(data.get('specimens') or {})}, with {config['exposure']['photons'][0]:g} or "
        "more photons per pixel. Without a known astigmatism, one image gives the magnitude of the "
        "defocus but not its sign. Compressed or sharpened images were not in the training.",
        "",
        "## Trained with",
        "",
        f"- images: {data['images']}; {training_patches(config)} of "
        f"{len(data['source_images']['train'])} source images",
        f"- {run['epochs']:.1f} epochs{fresh}, {run['patches_seen']:,} patches seen, "
        f"{run['minutes']:.1f} minutes on {run['processor']}",
        f"- commands: `{config.get('data_command', '')}`, `{run['command']}`",
        *([f"- starting from {config['start_from']}"] if config.get("start_from") else []),
        f"- commit {run['commit']}",
        "",
        "## Validation (source images never trained on)",
        "",
        "| condition | " + " | ".join(f"R² {name}" for name in config["label_names"]) + " |",
        "|---" * (1 + len(config["label_names"])) + "|",
        *(f"| {c} | " + " | ".join(f"{v:.3f}" for v in row) + " |" for c, row in scores.items()),
        "",
        *(context_lines(config["context"]) if "context" in config else []),
    ]
    return "\n".join(lines)


def objects(specimens: Mapping[str, Any]) -> str:
    """Objects of the training, in words."""
    names = {"thick": "thick", "soft": "soft", "hazy": "hazy", "sparse": "sparse"}
    found = [word for name, word in names.items() if specimens.get(name)]
    if not found:
        return (
            "thin, sharp objects; thick ones and light from other planes were not in the training"
        )
    return f"thin and sharp objects, and of {', '.join(found)} ones"


def context_lines(context: Mapping[str, Any]) -> list[str]:
    """Lines about the network that sees whole images."""
    scores = context["validation"].items()
    return [
        "## Images seen as a whole",
        "",
        "context.safetensors holds a second network, which sees all patches of an image or of a "
        "focal stack together; maps use it, `predict` does not. R² on simulated validation images, "
        "by planes x places and light:",
        "",
        "| images | R² |",
        "|---|---|",
        *(f"| {name} | {score:.3f} |" for name, score in scores),
        "",
        f"Trained for {context['settings']['steps']} steps: `{context['run']['command']}`, commit "
        f"{context['run']['commit']}.",
        "",
    ]


def training_patches(config: Mapping[str, Any]) -> str:
    """Number and kind of the training patches; checkpoints before --fresh have stored ones."""
    if config["run"].get("fresh"):
        return "patches simulated during the training, each seen once,"
    return f"{config['data']['patches']['train']:,} patches"


def interval_text(low: float, high: float, unit: str) -> str:
    """Two numbers as `0 to 4 waves`, or as one if they are equal."""
    text = f"{low:.4g}" if math.isclose(low, high) else f"{low:.4g} to {high:.4g}"
    return f"{text} {unit}".strip()
