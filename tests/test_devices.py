"""Device mistakes are found without a GPU.

Tensors on the CPU pose as tensors on a GPU: they report the device `cuda:7` or `mps:7`, and refuse
what such a tensor refuses, which is tensors and generators of the CPU, NumPy, and on MPS double
precision. Each test makes the same call on the CPU and on the posing device, and compares values.

Training sets are simulated on the CPU: their random draws are NumPy's. So the tests cover PSFs,
blur and noise by themselves, then preparing a batch, training, prediction, maps and restoration.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data as skimage_data
from torch.overrides import TorchFunctionMode

from models.checkpoint import load_estimator
from models.data import Batch, Exposure, PatchSet, expose, normalise, turn
from models.mapping import PsfMap, predict_map
from models.run_state import load_state, save_state
from models.trainer import Settings, Trainer
from psf import Microscope, psf_model
from psf.blur import (
    blur_by_column,
    blur_valid,
    blur_varying,
    interpolation_weights,
    transfer_functions,
)
from psf.noise import (
    axial_illumination,
    camera_counts,
    fast_poisson_noise,
    global_illumination,
    quantise,
    rotate,
    to_photons,
)
from psf.synthesis import synthesize, synthesize_pupil
from restoration import with_map
from restoration.blur_map import blur_of_map, continue_to_borders
from restoration.richardson_lucy import richardson_lucy

CPU = torch.device("cpu")
# The index keeps cached tables of these tests apart from those of a real GPU.
DEVICES = [torch.device("cuda", 7), torch.device("mps", 7)]
NOT_ON_MPS = (torch.float64, torch.complex128, torch.uint16)  # the last with torch before 2.9
# On MPS, PSFs and their compression are computed in single precision, which the restoration
# amplifies. Elsewhere the same numbers come from the same operations.
MPS_TOLERANCE = 1e-4  # of the largest value
# The name of the device is all that autocast looks at; mixed precision stays off in any case.
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available. *Disabling")


class Posing(torch.Tensor):
    """A CPU tensor that poses as one on a GPU; what is computed from it poses too."""

    where: torch.device  # set by the fixture

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return copied


class PosingGenerator(torch.Generator):
    """A generator that poses in the same way; it draws what a CPU generator of its seed draws."""

    @property
    def device(self) -> torch.device:
        return Posing.where


class Mixed(Exception):
    """A call that the device would refuse."""


class Generator(torch.Generator):
    """Stands in for `torch.Generator`, which has no GPU here."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return PosingGenerator() if is_posing(device) else REAL_GENERATOR()


REAL_GENERATOR = torch.Generator
TO_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)


class PosingMode(TorchFunctionMode):
    """Gives devices their meaning for posing tensors, and refuses what a GPU would refuse."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return device_of(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return device_of(args[0]).type == "cuda"
        if func == torch.Tensor.to:
            return move(*args, **kwargs)
        if func == torch.Tensor.cpu:
            return pose(args[0], CPU)
        if func == torch._has_compatible_shallow_copy_type:
            return device_of(args[0]) == device_of(args[1])  # nn.Module.to asks
        if func in TO_NUMPY and isinstance(args[0], Posing):
            raise Mixed("a tensor on the GPU has no NumPy array; move it with .cpu() first")
        device = kwargs.pop("device", None)
        refuse_mixtures(func, device, args, kwargs)
        found = func(*args, **kwargs)
        if func == torch.Tensor.grad.__get__ and found is not None:
            return found.as_subclass(type(args[0]))  # torch itself returns a plain tensor
        return refuse_types(found) if device is None else pose(found, device)


def refuse_mixtures(func: Any, device: Any, args: Any, kwargs: Any) -> None:
    """Raise where a GPU would: tensors on two devices, or a generator of the other one.

    Single numbers may stay on the CPU, and so may indices; copies cross devices.
    """
    given = list(flat((args, kwargs)))
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    posing = any(isinstance(one, Posing) for one in tensors)
    name = getattr(func, "__qualname__", repr(func))
    copies = func == torch.Tensor.copy_
    looks_up = func == torch.Tensor.__getitem__ and isinstance(args[0], Posing)
    if posing and not copies and not looks_up:
        plain = [tuple(t.shape) for t in tensors if not isinstance(t, Posing) and t.ndim]
        if plain:
            raise Mixed(f"{name} gets tensors on the GPU, and on the CPU tensors of shape {plain}")
    drawn = posing if device is None else is_posing(device)
    for one in given:
        if isinstance(one, REAL_GENERATOR) and isinstance(one, PosingGenerator) != drawn:
            raise Mixed(f"{name} draws on one device from a generator of the other")


def refuse_types(found: Any) -> Any:
    """What a call returned, unless the device has no numbers of this type."""
    for one in flat(found):
        if isinstance(one, Posing) and Posing.where.type == "mps" and one.dtype in NOT_ON_MPS:
            raise Mixed(f"a tensor of {one.dtype} on MPS, which has none")
    return found


def flat(values: Any) -> Iterator[Any]:
    """Every value in nested lists, tuples and dicts."""
    if isinstance(values, dict):
        values = tuple(values.values())
    if not isinstance(values, list | tuple):
        yield values
        return
    for one in values:
        yield from flat(one)


def is_posing(device: torch.device | str) -> bool:
    return torch.device(device).type == Posing.where.type


def device_of(tensor: torch.Tensor) -> torch.device:
    return Posing.where if isinstance(tensor, Posing) else CPU


def move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`tensor.to(...)`, where a device, a type or another tensor may come first."""
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    for one in args:
        if isinstance(one, torch.Tensor):
            device, dtype = device_of(one), one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, str | torch.device):
            device = one  # what else may come says when to copy
    moved = tensor.to(dtype or tensor.dtype, **kwargs)
    return refuse_types(moved) if device is None else pose(moved, device)


def pose(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device: itself, or a copy if it was on the other one."""
    if isinstance(tensor, Posing) == is_posing(device):
        return tensor
    return refuse_types(tensor.clone().as_subclass(Posing if is_posing(device) else torch.Tensor))


@pytest.fixture(params=DEVICES, ids=["cuda", "mps"])
def posing(monkeypatch, request):
    """The posing device, which exists while the test runs."""
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Posing, "where", request.param, raising=False)
    with PosingMode():
        yield request.param


# --- the mechanism itself


def on_gpu(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, device=Posing.where)


def test_results_pose_and_come_back(posing):
    x = on_gpu([1.0, 2.0])
    assert x.device == (x * 2).device == x.new_zeros(2).device == torch.zeros_like(x).device
    assert x.device == posing
    assert torch.ones(2).to(x).device == torch.ones(2).to(posing, torch.int64).device == posing
    assert x.to(torch.float16).device == x.sort().values.device == torch.fft.rfft(x).device
    assert x.cpu().device == x.to("cpu").device == CPU
    assert x.cpu().numpy().tolist() == x.tolist() == [1, 2]
    drawn = torch.rand(2, generator=torch.Generator(posing).manual_seed(1), device=posing)
    assert torch.equal(drawn.cpu(), torch.rand(2, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.stack([torch.ones(2), x]),
        lambda x: torch.where(x > 0, torch.ones(2), x),
        lambda x: torch.nn.functional.mse_loss(x, torch.ones(2)),
        lambda x: torch.ones(2)[x.long() - 1],
        lambda x: x.index_add_(0, torch.tensor([0]), x[:1]),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.poisson(x, torch.Generator()),
        lambda x: torch.rand(2, generator=torch.Generator(), device=Posing.where),
        lambda x: torch.rand(2, generator=torch.Generator(Posing.where)),
    ],
)
def test_mistakes_are_refused(posing, mistake):
    with pytest.raises(Mixed):
        mistake(on_gpu([1.0, 2.0]))


def test_mps_has_no_double_precision(posing):
    calls = (lambda x: x.double(), lambda x: torch.zeros(2, dtype=torch.float64).to(x.device))
    for call in calls:
        if posing.type == "mps":
            with pytest.raises(Mixed):
                call(on_gpu([1.0]))
        else:
            assert call(on_gpu([1.0])).dtype == torch.float64


def test_what_a_gpu_allows_is_allowed(posing):
    x = on_gpu([1.0, 2.0])
    assert (x * torch.tensor(2.0)).tolist() == [2, 4]
    assert x[torch.tensor([1, 1])].tolist() == [2, 2]
    assert x.copy_(torch.ones(2)).tolist() == [1, 1]
    assert float(x.sum()) == 2


def test_gradients_pose(posing):
    x = on_gpu([1.0, 2.0]).requires_grad_()
    x.square().sum().backward()
    assert (x.grad.device, x.grad.tolist()) == (posing, [2, 4])


# --- light: PSFs, blur, noise

LABELS = {
    "gaussian1d": [[2.0], [3.5]],
    "gaussian2d": [[2.0, 4.0], [3.0, 1.0]],
    "zernike1d": [[0.0], [1.0]],
    "zernike2d": [[1.0, 0.3, -0.2], [0.5, 0.0, 0.1]],
    "astigmatic": [[-1.0], [0.7]],
    "gibson_lanni": [[0.5], [-1.0]],
}
OPTICS = Microscope()
SIZE = 95  # px, holds 99 % of the light of all of them


def same_on_both(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """What a function returns on the CPU, asserting that the posing device gives the same there."""
    expected = function(*tensors)
    found = function(*(tensor.to(Posing.where) for tensor in tensors))
    assert found.device == Posing.where
    assert_same(found, expected)
    return expected


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found.cpu() - expected).abs().max()
    allowed = MPS_TOLERANCE if Posing.where.type == "mps" else 0.0
    assert difference <= allowed * expected.abs().max()


@pytest.fixture
def picture():
    """Photons (96, 96) of a photograph."""
    return torch.from_numpy(skimage_data.camera()[100:196, 200:296].astype(np.float32))


@pytest.mark.parametrize("name", LABELS)
def test_psfs(posing, name):
    labels = torch.tensor(LABELS[name])
    psfs = same_on_both(lambda x: synthesize(name, x, OPTICS, SIZE), labels)
    assert psfs.sum((1, 2)) == pytest.approx([1, 1])


def test_psfs_of_several_microscopes_and_of_sampled_pupils(posing):
    optics = [OPTICS, replace(OPTICS, na=0.4)]
    labels = torch.tensor(LABELS["zernike1d"])
    same_on_both(lambda x: synthesize("zernike1d", x, optics, SIZE), labels)
    waves = torch.linspace(0, 1, 32).expand(1, 32, 32)
    same_on_both(lambda x: synthesize_pupil(x, OPTICS, SIZE), waves)


@pytest.mark.parametrize("light", ["scalar", "aplanatic", "vectorial"])
def test_psfs_of_every_kind_of_light(posing, light):
    model = psf_model("zernike2d", light=light)
    labels = torch.tensor(LABELS["zernike2d"])
    same_on_both(lambda x: synthesize(model, x, OPTICS, SIZE), labels)


def test_transfer_functions(posing):
    labels = torch.tensor(LABELS["zernike1d"])
    same_on_both(lambda x: transfer_functions("zernike1d", x, OPTICS, (64, 72)), labels)


def test_blur(posing, picture):
    psfs = synthesize("gaussian1d", torch.tensor(LABELS["gaussian1d"]), OPTICS, 15)
    same_on_both(blur_valid, picture.expand(2, -1, -1), psfs)
    levels, values = torch.tensor([0.0, 95.0]), torch.arange(96.0).expand(96, 96)
    weights = same_on_both(interpolation_weights, values, levels)
    same_on_both(blur_varying, picture, psfs, weights)
    same_on_both(lambda x, h: blur_by_column(x, lambda at: h[at % 2]), picture, psfs)


def test_noise_and_illumination(posing, picture):
    def recorded(images: torch.Tensor) -> torch.Tensor:
        rng = torch.Generator(images.device).manual_seed(4)
        photons = to_photons(images, 50.0)
        counts = torch.cat([camera_counts(photons, rng), fast_poisson_noise(photons, rng)])
        counts = global_illumination(axial_illumination(counts, 0.3), 2.0)
        return rotate(quantise(counts), 30.0, 60)

    same_on_both(recorded, picture[None])


# --- networks: training, prediction, map


def test_preparing_a_batch(posing, picture):
    def prepared(patches: torch.Tensor) -> torch.Tensor:
        device = patches.device
        rng = torch.Generator(device).manual_seed(5)
        content, optics = torch.ones(6, device=device) > 0, torch.ones(6, 4, device=device)
        labels = torch.tensor(LABELS["zernike2d"], device=device).repeat(3, 1)
        batch = turn(Batch(patches, labels, content, optics), psf_model("zernike2d"), rng)
        exposed = normalise(expose(batch.patches, Exposure(), rng))
        return torch.cat([exposed.flatten(1), batch.labels, batch.cutoff[:, None]], 1)

    same_on_both(prepared, picture.expand(6, -1, -1).clone())


def trained(data, device):
    """A trainer after two steps, and the losses."""
    settings = Settings(data=data, batch_size=40, device=str(device), bf16=False)
    trainer = Trainer(settings, 0, 1)
    batches = (np.arange(40), np.arange(40, 80))
    patch_set = PatchSet(data, "train")
    steps = [
        trainer.train_step(patch_set.batch(indices, trainer.device), 1e-3) for indices in batches
    ]
    return trainer, [step[0].item() for step in steps]


def weights(trainer):
    return {name: tensor.cpu() for name, tensor in trainer.network.state_dict().items()}


def test_training_validation_and_state(posing, focus_data, tmp_path):
    on_cpu, expected = trained(focus_data, CPU)
    there, losses = trained(focus_data, posing)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, tensor in weights(there).items():
        assert torch.allclose(tensor, weights(on_cpu)[name], atol=1e-6), name
    assert there.validate() == on_cpu.validate()

    path = tmp_path / "state.safetensors"
    save_state(path, there.network, there.optimizer, {"step": 2})
    again = Trainer(there.config, 0, 1)
    load_state(path, again.network, again.optimizer)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(there)[name]), name
    state = again.optimizer.state_dict()["state"]
    assert {one["exp_avg"].device for one in state.values()} == {posing}


READS = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__float__", "__int__")


class Waiting(TorchFunctionMode):
    """Notes every call that makes the processor wait for values on the posing device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Posing):
            masks = [
                one
                for one in flat(args[1:] if name in ("__getitem__", "__setitem__") else ())
                if isinstance(one, Posing) and one.dtype == torch.bool
            ]
            if name in READS or masks:
                self.calls.append(name)
        return func(*args, **(kwargs or {}))


def test_a_training_step_does_not_wait_for_the_device(posing, focus_data):
    """Reading one value makes a GPU idle until the processor has sent the next step."""
    settings = Settings(data=focus_data, batch_size=40, device=str(posing), bf16=False)
    trainer = Trainer(settings, 0, 1)
    batch = PatchSet(focus_data, "train").batch(np.arange(40), posing)
    with Waiting() as waiting:
        found = trainer.train_step(batch, 1e-3)
        assert waiting.calls == []
        assert float(batch.patches[batch.has_content].amax()) > 0
    assert waiting.calls == ["__getitem__", "__float__"]
    assert device_of(found) == posing


def test_prediction_and_map(posing, picture):
    image = torch.from_numpy(skimage_data.camera()[:160, :192].astype(np.float32))
    here, there = load_estimator("zernike1d"), load_estimator("zernike1d", posing)
    patches = image.unfold(0, 128, 32).unfold(1, 128, 32).flatten(0, 1)
    expected, found = here.predict(patches, OPTICS), there.predict(patches, OPTICS)
    for name in ("values", "standard_deviations", "half_widths_95", "content_probability"):
        assert_same(getattr(found, name), getattr(expected, name))
    assert_same(there.predict(patches.to(posing), OPTICS).values, expected.values)
    table = predict_map(here, image, OPTICS, 32)
    for pixels in (image, image.to(posing)):
        posing_table = predict_map(there, pixels, OPTICS, 32)
        for name in ("values", "standard_deviations", "content", "brightness"):
            assert_same(getattr(posing_table, name), getattr(table, name))


# --- restoration


def sloped_map(device: torch.device) -> PsfMap:
    """FWHM from 1 to 4 px along x in an image of 96 x 96 px, without content in one corner."""
    width = torch.linspace(1, 4, 4, device=device).expand(1, 3, 4)
    places = torch.linspace(0, 95, 3, device=device), torch.linspace(0, 95, 4, device=device)
    content = torch.ones(3, 4, device=device)
    content[0, 0] = 0
    return PsfMap(psf_model("gaussian1d"), OPTICS, width, 0.1 + 0 * width, content, *places)


@pytest.mark.parametrize(
    ("iterations", "acceleration"), [("auto", "momentum"), (6, "biggs"), (6, None)]
)
def test_richardson_lucy(posing, picture, iterations, acceleration):
    def restored(image: torch.Tensor) -> torch.Tensor:
        blur = blur_of_map(sloped_map(image.device), (96, 96))
        background = torch.linspace(0, 2, 96).expand(96, 96)
        options = {"acceleration": acceleration, "background": background}
        return richardson_lucy(image, blur, iterations, **options).image

    same_on_both(restored, picture)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("tile", [None, 48])
def test_restoration_with_a_map(posing, picture, monkeypatch, refined, tile):
    if tile:
        monkeypatch.setattr(with_map, "WHOLE_PX", 0)
        monkeypatch.setattr(with_map, "TILE", tile)

    def restored(image: torch.Tensor) -> torch.Tensor:
        psf_map = sloped_map(image.device)
        return with_map.restore_with_map(image, psf_map, 4, refined=refined)[0].image

    same_on_both(restored, picture)


def test_an_image_is_restored_on_its_device_with_a_map_from_the_cpu(posing, picture):
    psf_map = sloped_map(CPU)  # as read from a folder, or predicted

    def restored(image: torch.Tensor) -> torch.Tensor:
        return with_map.restore_with_map(image, psf_map, 4, refined=True)[0].image

    same_on_both(restored, picture)


def test_borders_of_a_map(posing):
    def continued(values: torch.Tensor) -> torch.Tensor:
        psf_map = replace(sloped_map(values.device), values=values)
        return continue_to_borders(psf_map, [1.0], 32.0, (128, 128)).values

    same_on_both(continued, torch.linspace(0, 2, 12).reshape(1, 3, 4))
