"""What every model family must do, so that nothing else need know which one it is.

toto2 is tested with every run; the others, whose libraries are installed into a folder first, are slow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toto_pipeline.errors import ConfigError, WeightsError
from toto_pipeline.models import families
from toto_pipeline.models.forecaster import QUANTILES, TrainableForecaster
from toto_pipeline.models.optimizer import load_state_by_name, set_rates, state_by_name
from toto_pipeline.settings.families import OWN_FAMILIES
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline_tests.contracts.libraries import FAMILIES, Libraries

CONTEXT, HORIZON, VARIATES = 64, 12, 2
OPENS_WITH_UPSTREAM_ALONE = {
    "toto2": "from toto2 import Toto2Model; model = Toto2Model.from_pretrained(sys.argv[1])",
    "chronos": (
        "from chronos import BaseChronosPipeline\nmodel = BaseChronosPipeline.from_pretrained(sys.argv[1]).model"
    ),
    "linear": (
        "import json, pathlib; from safetensors.torch import load_file\nfolder = pathlib.Path(sys.argv[1])\n"
        "assert json.loads((folder / 'config.json').read_text())['d_model'] == 16\n"
        "class model: state_dict = staticmethod(lambda: load_file(folder / 'model.safetensors'))"
    ),
    "toto1": "from toto.model.toto import Toto; model = Toto.load_from_checkpoint(sys.argv[1], strict=True).model",
}
TINY = {"patch_size": 8, "d_model": 16, "num_heads": 2, "num_layers": 4}
SETTINGS = {"linear": {"options": {"d_model": 16}}}

Build = Callable[..., TrainableForecaster]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, libraries: Libraries) -> Iterator[str]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with libraries.on_path(request.param):
        yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def build(family: str) -> Iterator[Build]:
    def build(weights: Path | None = None, *, seed: int = 0, **settings: Any) -> TrainableForecaster:
        model = ModelSettings(family=family, **SETTINGS.get(family, TINY))
        torch.manual_seed(seed)
        return families.build_for_training(TrainingSettings(model=model, **settings), weights)

    yield build
    build().set_scale(processes=1, accumulation=1)  # unit scaling keeps it for the whole process


@pytest.fixture
def forecaster(build: Build) -> TrainableForecaster:
    return build()


def waves(batch: int, steps: int, *, variates: int = VARIATES, seed: int = 0) -> np.ndarray:
    """(batch, variates, steps) of noisy waves at different heights, as the data of a run."""
    random = np.random.default_rng(seed)
    phase = np.arange(batch * variates).reshape(batch, variates, 1)
    values = 10 * phase + 3 * np.sin(np.arange(steps) / 4 + phase) + 0.1 * random.normal(size=(batch, variates, steps))
    return values.astype(np.float32)


def training_batch(forecaster: TrainableForecaster, batch: int = 4, *, missing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Windows and masks as the trainer makes them."""
    shape = forecaster.windows
    length = shape.length(CONTEXT, HORIZON)
    values, random = waves(batch, length), np.random.default_rng(1)
    values[random.random(values.shape) < missing] = np.nan
    kept = [shape.training_mask(length, HORIZON, np.random.default_rng(row)) for row in range(batch)]
    return torch.from_numpy(values), torch.from_numpy(np.stack(kept))


def validation_batch(forecaster: TrainableForecaster, batch: int = 4) -> tuple[Tensor, Tensor]:
    shape = forecaster.windows
    length = shape.length(CONTEXT, HORIZON)
    kept = torch.from_numpy(shape.forecast_mask(length, HORIZON)).expand(batch, -1)
    return torch.from_numpy(waves(batch, length)), kept


def mean_loss(forecaster: TrainableForecaster, batch: tuple[Tensor, Tensor]) -> Tensor:
    return forecaster.loss(*batch) / forecaster.targets(*batch)


def train(forecaster: TrainableForecaster, steps: int, rate: float, batch: tuple[Tensor, Tensor]) -> list[float]:
    optimizer, losses = forecaster.optimizer(rate, 0.0), []
    for _ in range(steps):
        loss = mean_loss(forecaster, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def rate(family: str) -> float:
    """A rate at which a tiny model of a family learns within a few steps."""
    return 0.1 if family == "toto2" else 5e-3


def test_windows_hold_the_context_and_the_horizon_and_hide_the_end(forecaster: TrainableForecaster) -> None:
    shape = forecaster.windows
    for context, horizon in ((64, 12), (61, 8), (5, 30)):
        length = shape.length(context, horizon)
        mask = shape.forecast_mask(length, horizon)
        assert length >= context + horizon
        assert mask.shape == (length,) and mask.dtype == bool
        hidden = int((~mask).sum())
        assert hidden >= horizon
        assert not mask[-hidden:].any()
        drawn = [shape.training_mask(length, horizon, np.random.default_rng(3)) for _ in range(2)]
        assert drawn[0].shape == (length,) and drawn[0].dtype == bool
        np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("batch", [training_batch, validation_batch])
def test_the_loss_is_a_sum_over_counted_positions(
    forecaster: TrainableForecaster, batch: Callable[[TrainableForecaster], tuple[Tensor, Tensor]]
) -> None:
    values, kept = batch(forecaster)
    loss, targets = forecaster.loss(values, kept), forecaster.targets(values, kept)
    assert loss.shape == targets.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert targets > 0
    rows = [(values[row : row + 1], kept[row : row + 1]) for row in range(len(values))]
    assert sum(int(forecaster.targets(*row)) for row in rows) == targets
    torch.testing.assert_close(sum(forecaster.loss(*row) for row in rows), loss, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_two_micro_batches_add_up_to_those_of_the_whole(build: Build) -> None:
    whole, split = build(), build()
    values, kept = training_batch(whole, missing=0.1)
    count = whole.targets(values, kept)
    (whole.loss(values, kept) / count).backward()
    split.set_scale(processes=1, accumulation=2)
    for part in (slice(2), slice(2, 4)):
        (split.loss(values[part], kept[part]) / count).backward()
    for (name, one), two in zip(whole.module.named_parameters(), split.module.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        torch.testing.assert_close(
            two.grad, one.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_what_is_missing_neither_counts_nor_spoils_the_gradients(forecaster: TrainableForecaster) -> None:
    values, kept = training_batch(forecaster, missing=0.3)
    values[0] = torch.nan
    values[1, :, : CONTEXT // 2] = torch.nan
    loss = forecaster.loss(values, kept)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in forecaster.module.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(forecaster.loss(values[1:], kept[1:]), loss)
    assert forecaster.targets(values[1:], kept[1:]) == forecaster.targets(values, kept)


def test_the_loss_of_nothing_is_zero(forecaster: TrainableForecaster) -> None:
    values, kept = training_batch(forecaster)
    nothing = torch.full_like(values, torch.nan), kept
    assert forecaster.loss(*nothing) == 0
    assert forecaster.targets(*nothing) == 0


def test_what_is_hidden_is_a_target_and_no_input(forecaster: TrainableForecaster) -> None:
    """So what one hidden step adds to the loss does not depend on whether another is there."""
    values, kept = validation_batch(forecaster)
    hidden = int((~kept[0]).sum())
    first, second = torch.arange(hidden)[::2], torch.arange(hidden)[1::2]
    start = values.shape[-1] - hidden

    def without(*steps: Tensor) -> float:
        changed = values.clone()
        for each in steps:
            changed[..., start + each] = torch.nan
        with torch.no_grad():
            return float(forecaster.loss(changed, kept))

    alone = (without(second) - without(first, second)) + (without(first) - without(first, second))
    assert alone > 0
    assert without() - without(first, second) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("steps", "horizon"), [(64, 8), (61, 13), (5, 3), (64, 40)])
def test_forecasts_are_shaped_finite_and_sorted(forecaster: TrainableForecaster, steps: int, horizon: int) -> None:
    history = waves(3, steps)
    history[0, 0, : steps // 2] = np.nan
    history[0, 1, steps // 3 : steps // 2] = np.nan
    history[1, 0, -2:] = np.nan
    history[2, 1] = np.nan
    given = history.copy()
    forecast = forecaster.forecast(history, horizon)
    np.testing.assert_array_equal(history, given)
    assert forecast.shape == (3, VARIATES, horizon, len(QUANTILES))
    assert forecast.dtype == np.float32
    assert np.isfinite(forecast).all()
    assert (np.diff(forecast, axis=-1) >= 0).all()


def test_a_forecast_depends_on_its_own_row_only_and_is_the_same_each_time(forecaster: TrainableForecaster) -> None:
    history = waves(3, CONTEXT)
    together = forecaster.forecast(history, HORIZON)
    torch.manual_seed(1234)
    np.testing.assert_array_equal(forecaster.forecast(history, HORIZON), together)
    alone = np.concatenate([forecaster.forecast(row[None], HORIZON) for row in history])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_next_to_nothing(forecaster: TrainableForecaster) -> None:
    """Histories of different lengths are padded to be stacked, by whole patches here."""
    history = waves(1, 48)
    padded = np.concatenate([np.full((1, VARIATES, 16), np.nan, dtype=np.float32), history], axis=-1)
    plain = forecaster.forecast(history, HORIZON)
    assert np.abs(forecaster.forecast(padded, HORIZON) - plain).mean() < 0.5 * plain.std()


def test_a_forecast_leaves_training_as_it_was(forecaster: TrainableForecaster) -> None:
    state = torch.get_rng_state()
    assert forecaster.module.training
    forecaster.forecast(waves(1, CONTEXT), HORIZON)
    assert forecaster.module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in forecaster.module.parameters())


def test_a_few_steps_lower_the_loss_and_teach_the_forecast(family: str, forecaster: TrainableForecaster) -> None:
    batch = training_batch(forecaster, 8)
    losses = train(forecaster, 160, rate(family), batch)
    assert losses[-1] < 0.8 * losses[0]
    values = batch[0].numpy()
    history, actual = values[..., :-HORIZON], values[..., -HORIZON:]
    error = np.abs(forecaster.forecast(history, HORIZON)[..., 4] - actual).mean()
    flat = np.abs(history.mean(axis=-1, keepdims=True) - actual).mean()
    assert error < 0.6 * flat


def test_the_seed_decides_the_weights(build: Build) -> None:
    one, same, other = (build(seed=seed).module.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_training_again_from_the_seed_gives_the_same_weights(family: str, build: Build) -> None:
    states = []
    for _ in range(2):
        forecaster = build()
        train(forecaster, 3, rate(family), training_batch(forecaster))
        states.append(forecaster.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_state_dict_carries_the_whole_model(build: Build) -> None:
    one, other = build(seed=0), build(seed=1)
    history = waves(2, CONTEXT)
    assert not np.array_equal(other.forecast(history, HORIZON), one.forecast(history, HORIZON))
    other.module.load_state_dict(one.module.state_dict())
    np.testing.assert_array_equal(other.forecast(history, HORIZON), one.forecast(history, HORIZON))


def test_weights_and_optimizer_by_name_carry_the_training_on(family: str, build: Build) -> None:
    forecaster, resumed = build(seed=0), build(seed=1)
    batch = training_batch(forecaster)
    optimizer = forecaster.optimizer(rate(family), 1e-4)
    resumed_optimizer = resumed.optimizer(rate(family), 1e-4)

    def step(forecaster: TrainableForecaster, optimizer: torch.optim.Optimizer) -> None:
        mean_loss(forecaster, batch).backward()
        set_rates(optimizer, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    step(forecaster, optimizer)
    resumed.module.load_state_dict(forecaster.module.state_dict())
    load_state_by_name(resumed.module, resumed_optimizer, state_by_name(forecaster.module, optimizer))
    for pair in ((forecaster, optimizer), (resumed, resumed_optimizer)):
        step(*pair)
    for one, two in zip(forecaster.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, two)


def test_weight_decay_is_what_a_step_takes_off_at_the_peak(family: str, build: Build) -> None:
    forecaster = build()
    optimizer = forecaster.optimizer(rate(family), 0.01)
    before = {name: p.detach().clone() for name, p in forecaster.module.named_parameters()}
    for parameter in forecaster.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in forecaster.module.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), 0.99 * before[name], msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_group_of_the_optimizer_remembers_its_rate(forecaster: TrainableForecaster) -> None:
    optimizer = forecaster.optimizer(0.01, 0.0)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in forecaster.module.parameters()}
    assert all(group["initial_lr"] == group["lr"] > 0 for group in optimizer.param_groups)


def test_the_blocks_are_the_repeated_part_whole_and_in_order(forecaster: TrainableForecaster) -> None:
    names = {id(part): name for name, part in forecaster.module.named_modules()}
    blocks = forecaster.blocks()
    parent = names[id(blocks[0])].rpartition(".")[0]
    assert [names[id(block)] for block in blocks] == [f"{parent}.{number}" for number in range(len(blocks))]
    assert len(forecaster.module.get_submodule(parent)) == len(blocks) == 4
    held = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert len(held) == len(set(held))


def test_the_loss_calls_what_the_module_is_wrapped_in(forecaster: TrainableForecaster) -> None:
    class Counting(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *inputs: Any, **named: Any) -> Any:
            self.calls += 1
            return self.module(*inputs, **named)

    bare, names = forecaster.module, list(forecaster.module.state_dict())
    batch = training_batch(forecaster)
    expected, wrappers = forecaster.loss(*batch), []
    forecaster.wrap(lambda module: wrappers.append(Counting(module)) or wrappers[0])
    assert torch.equal(forecaster.loss(*batch), expected)
    assert wrappers[0].calls == 1
    assert forecaster.module is bare
    assert list(forecaster.module.state_dict()) == names


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_shorter_number_format_gives_nearly_the_same_loss(build: Build, precision: str) -> None:
    exact, shorter = build(), build(precision=precision)
    batch = training_batch(exact)
    loss = mean_loss(shorter, batch)
    assert loss.dtype == torch.float32
    assert loss.item() != mean_loss(exact, batch).item()
    assert loss.item() == pytest.approx(mean_loss(exact, batch).item(), rel=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in shorter.module.parameters())
    assert np.isfinite(shorter.forecast(waves(1, CONTEXT), HORIZON)).all()


def test_the_head_can_be_trained_alone(family: str, build: Build) -> None:
    forecaster = build(tune="head")
    before = {name: p.detach().clone() for name, p in forecaster.module.named_parameters()}
    trained = {name for name, p in forecaster.module.named_parameters() if p.requires_grad}
    assert 0 < len(trained) < len(before) / 2
    train(forecaster, 2, rate(family), training_batch(forecaster))
    changed = {name for name, p in forecaster.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained


def test_adapters_and_muon_work_or_are_refused(family: str, build: Build) -> None:
    for settings, refused in (({"tune": "lora"}, "lora"), ({"optimizer": "muon"}, "muon")):
        if family == "toto2":
            forecaster = build(**settings)
            forecaster.optimizer(0.1, 0.0, 0.2 if "optimizer" in settings else None)
        else:
            with pytest.raises((ValueError, ConfigError), match=refused):
                build(**settings).optimizer(0.001, 0.0, 0.2)
    if family != "toto2":
        with pytest.raises(ConfigError, match="muon"):
            build().optimizer(0.001, 0.0, 0.2)


@pytest.fixture
def folder(family: str, build: Build, tmp_path: Path) -> Path:
    """A saved model that was trained a little."""
    forecaster = build()
    train(forecaster, 2, rate(family), training_batch(forecaster))
    (tmp_path / "model").mkdir()
    families.save(forecaster, tmp_path / "model")
    np.save(tmp_path / "expected.npy", forecaster.forecast(waves(2, CONTEXT), HORIZON))
    return tmp_path / "model"


def expected_forecast(folder: Path) -> np.ndarray:
    forecast: np.ndarray = np.load(folder.parent / "expected.npy")
    return forecast


def test_a_saved_model_is_opened_as_its_family_and_forecasts_the_same(folder: Path, family: str) -> None:
    forecaster = families.load_forecaster(folder)
    assert forecaster.name == family
    np.testing.assert_array_equal(forecaster.forecast(waves(2, CONTEXT), HORIZON), expected_forecast(folder))
    (folder / families.FAMILY_FILE).unlink()  # as in a folder that the makers of the model wrote
    if family in OWN_FAMILIES:
        assert families.load_forecaster(folder).name == family
    else:
        with pytest.raises(WeightsError, match=r"name the family in family\.json"):
            families.load_forecaster(folder)


def test_training_can_start_from_a_saved_model(folder: Path, build: Build) -> None:
    forecaster = build(folder, seed=1)
    assert forecaster.module.training
    np.testing.assert_array_equal(forecaster.forecast(waves(2, CONTEXT), HORIZON), expected_forecast(folder))


def test_a_saved_model_opens_with_the_makers_package_alone(folder: Path, family: str, libraries: Libraries) -> None:
    script = (
        f"import sys, torch\nfrom safetensors.torch import save_file\n{OPENS_WITH_UPSTREAM_ALONE[family]}\n"
        "assert not any(name.startswith('toto_pipeline') for name in sys.modules)\n"
        "save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, sys.argv[2])\n"
    )
    answer = folder.parent / "answer.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(answer)],
        env=libraries.environment(family),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    opened, saved = load_file(answer), families.load_forecaster(folder).module.state_dict()
    assert opened.keys() == saved.keys()
    assert all(torch.equal(opened[name], saved[name]) for name in saved)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in sorted(tensors) if name.endswith("weight")))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="do not fit") as caught:
        families.load_forecaster(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"not safetensors", b""])
def test_damaged_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="do not fit"):
        families.load_forecaster(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="never"):
        families.load_forecaster(folder)


def test_weights_of_another_size_than_their_config_are_refused(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    changed = text.replace('"d_model": 16', '"d_model": 32').replace('"embed_dim": 16', '"embed_dim": 32')
    assert changed != text
    (folder / "config.json").write_text(changed)
    with pytest.raises(WeightsError, match="do not fit"):
        families.load_forecaster(folder)


def test_a_config_that_is_no_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"config\.json"):
        families.load_forecaster(folder)


def test_the_family_imports_no_tracker(family: str, libraries: Libraries) -> None:
    script = (
        f"import sys; from toto_pipeline.models.families import family; family({family!r})\n"
        "print([name for name in ('dagster', 'mlflow', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=libraries.environment(family), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
