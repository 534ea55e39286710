"""A GPU computes what the CPU computes: `pytest -m gpu`, less than a minute on a GPU.

The calls are those of `device_cases`, which run on posing devices where there is no GPU.
"""

import pytest
import torch
from device_cases import CASES, CONVOLVED, CPU, SAMPLED, Case, simulated, validation
from tqdm import tqdm

from models.trainer import Settings, Trainer
from simulation import augmentation

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


def statistics(result: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation (2,) of a result."""
    return torch.stack([result.mean(), result.std()])


def difference(case: Case, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference between two results, as a share of the largest value expected."""
    if case.drawn:
        found, expected = statistics(found), statistics(expected)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    found = case.compute(GPU)
    assert found.device == (GPU if case.stays else CPU)
    assert difference(case, found.cpu(), case.compute(CPU)) <= case.tolerance


def test_simulated_patches(focus_data, monkeypatch):
    monkeypatch.setattr(augmentation, "GRAIN_SHARE", 0.0)  # each device draws its own grain
    found, expected = simulated(GPU, focus_data), simulated(CPU, focus_data)
    for name in ("labels", "has_content", "optics", "origins"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
    assert (found.blurred.cpu() - expected.blurred).abs().max() < SAMPLED


def test_validation(focus_data):
    found, expected = validation(GPU, focus_data), validation(CPU, focus_data)
    assert (found - expected).abs().max() <= CONVOLVED * expected.abs().max()


def test_training_lowers_the_loss(focus_data):
    """Steps with random light, noise and turns, in the precision that training takes by itself."""
    trainer = Trainer(Settings(data=focus_data, batch_size=40, device="cuda:0", epochs=8), 0, 1)
    with tqdm(disable=True) as bar:
        losses = [trainer.train_epoch(bar) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
