import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from toto_pipeline.config import PRESETS
from toto_pipeline.errors import WeightsError
from toto_pipeline.models import toto2
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.weights import locate_weights
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline_tests.models.small_models import TINY, mean_loss, train, windows
from toto_pipeline_tests.models.small_models import history as _history


class MatrixProductTypes(TorchDispatchMode):
    """The number formats in which matrix products are computed meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.add(args[-1].dtype)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def forecaster() -> toto2.Toto2Forecaster:
    torch.manual_seed(0)
    return toto2.build(TINY, None)


@pytest.fixture
def folder(forecaster: toto2.Toto2Forecaster, tmp_path: Path) -> Path:
    forecaster.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_released_configuration_has_the_released_number_of_parameters() -> None:
    module = toto2.build(ModelSettings(**PRESETS["toto2-4m"]["model"]), None).module
    assert sum(p.numel() for p in module.parameters()) == 4_144_448


@pytest.mark.parametrize("variates", [1, 3])
def test_forecasts_are_finite_sorted_and_shaped(forecaster: toto2.Toto2Forecaster, variates: int) -> None:
    history = _history(variates=variates, steps=61)
    history[0, 0, 20:30] = np.nan
    history[1, 0, -3:] = np.nan
    quantiles = forecaster.forecast(history, 19)
    assert quantiles.shape == (2, variates, 19, len(QUANTILES))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()


def test_what_the_loss_trains_is_what_the_forecast_says(forecaster: toto2.Toto2Forecaster) -> None:
    """A masked tail in forward() gives the quantiles of forecast(), so training and forecasting agree."""
    history = torch.from_numpy(_history(steps=64))
    values = torch.cat([history, torch.full((2, 1, 16), 123.0)], dim=-1)
    kept = torch.from_numpy(forecaster.windows.forecast_mask(80, 16)).expand(2, 1, -1)
    forecaster.module.eval()
    with torch.no_grad():
        output = forecaster.module(values, torch.ones_like(kept), kept, torch.zeros(2, 1, dtype=torch.long))
    scaled = output.quantiles[:, :, :, 7:9].reshape(9, 2, 1, 16)
    forecast = (scaled.sinh() * output.scale[..., -16:] + output.loc[..., -16:]).sort(dim=0).values
    np.testing.assert_allclose(forecaster.forecast(history.numpy(), 16), forecast.permute(1, 2, 3, 0), rtol=1e-5)


def test_the_loss_ignores_what_is_missing(forecaster: toto2.Toto2Forecaster) -> None:
    values = torch.from_numpy(_history(steps=64))
    kept = torch.ones(2, 64, dtype=torch.bool)
    values[:, :, 40:56] = float("nan")
    loss = forecaster.loss(values, kept)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in forecaster.module.parameters())


def test_the_loss_of_nothing_observed_is_zero(forecaster: toto2.Toto2Forecaster) -> None:
    nothing = torch.full((1, 1, 64), float("nan")), torch.ones(1, 64, dtype=torch.bool)
    assert forecaster.loss(*nothing) == 0
    assert forecaster.targets(*nothing) == 0


def test_targets_counts_the_observed_steps_that_are_predicted_from_enough(forecaster: toto2.Toto2Forecaster) -> None:
    values, kept = torch.zeros(1, 2, 40), torch.ones(1, 40, dtype=torch.bool)
    assert forecaster.targets(values, kept) == 2 * 32  # all but the first patch of 8
    values[0, 1, 12:16] = float("nan")
    assert forecaster.targets(values, kept) == 32 + 28
    kept[0, 20:] = False  # hidden steps are predicted all the same
    assert forecaster.targets(values, kept) == 32 + 28
    values[0, 0, 0] = float("nan")  # the second patch is predicted from 7 steps only
    assert forecaster.targets(values, kept) == 24 + 28
    kept[0, :8] = False  # no second patch is predicted from any, and one third patch from 4 steps only
    assert forecaster.targets(values, kept) == 24 + 16


def test_the_loss_sees_no_future(forecaster: toto2.Toto2Forecaster) -> None:
    """The loss of a patch depends on that patch, not on any later one."""

    def patch_losses(values: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(1, 64, dtype=torch.bool)
        terms = []
        for patch in range(1, 6):
            window = values.clone()
            window[..., (patch + 1) * 8 :] = float("nan")
            terms.append(forecaster.loss(window, kept))
        return torch.stack(terms)

    values = torch.from_numpy(_history(batch=1, steps=64))
    changed = values.clone()
    changed[..., 48:] += 1000
    with torch.no_grad():
        assert torch.equal(patch_losses(values), patch_losses(changed))


def test_a_few_steps_lower_the_loss(forecaster: toto2.Toto2Forecaster) -> None:
    values = torch.from_numpy(_history(batch=8, steps=80))
    kept = torch.from_numpy(forecaster.windows.forecast_mask(80, 16)).expand(8, -1)
    losses = train(forecaster, forecaster.optimizer(0.05, 0.0), 30, (values, kept))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("precision", "dtype", "error"), [("bf16", torch.bfloat16, 0.02), ("fp16", torch.half, 0.002)])
def test_a_shorter_number_format_gives_nearly_the_same_loss_in_float32(
    forecaster: toto2.Toto2Forecaster, precision: str, dtype: torch.dtype, error: float
) -> None:
    shorter = toto2.Toto2Forecaster(forecaster.module, precision=precision)
    with torch.no_grad(), MatrixProductTypes() as products:
        shorter.loss(*windows())
    assert products.seen == {dtype}
    exact, loss = mean_loss(forecaster, *windows()), mean_loss(shorter, *windows())
    assert loss.dtype == torch.float32
    assert exact != loss
    assert loss.item() == pytest.approx(exact.item(), rel=error)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in forecaster.module.parameters())
    assert np.isfinite(shorter.forecast(_history(), 8)).all()


def test_the_loss_calls_what_the_module_is_wrapped_in(forecaster: toto2.Toto2Forecaster) -> None:
    class Counting(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module
            self.calls = 0

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            output: torch.Tensor = self.module(*inputs)
            return output

    bare, names = forecaster.module, list(forecaster.module.state_dict())
    wrappers: list[Counting] = []
    expected = forecaster.loss(*windows())
    forecaster.wrap(lambda module: wrappers.append(Counting(module)) or wrappers[0])
    assert torch.equal(forecaster.loss(*windows()), expected)
    assert wrappers[0].calls == 1
    assert forecaster.module is bare
    assert list(forecaster.module.state_dict()) == names


def test_the_cache_of_a_forecast_by_blocks_is_not_spread(forecaster: toto2.Toto2Forecaster) -> None:
    """Its shape follows from the last forecast, so processes that compare their buffers would not agree."""
    history = torch.from_numpy(_history())
    inputs = {
        "target": history,
        "target_mask": torch.ones_like(history, dtype=torch.bool),
        "series_ids": torch.zeros(2, 1, dtype=torch.long),
    }
    before = [name for name, _ in forecaster.module.named_buffers()]
    expected = forecaster.module.forecast(inputs, 24, decode_block_size=8)
    assert [name for name, _ in forecaster.module.named_buffers()] != before
    seen: list[str] = []

    def spread(module: torch.nn.Module) -> torch.nn.Module:
        seen.extend(name for name, _ in module.named_buffers())
        return module

    forecaster.wrap(spread)
    assert seen == before
    torch.testing.assert_close(forecaster.module.forecast(inputs, 24, decode_block_size=8), expected)


def test_the_blocks_are_the_layers_in_order(forecaster: toto2.Toto2Forecaster) -> None:
    names = {id(module): name for name, module in forecaster.module.named_modules()}
    assert [names[id(block)] for block in forecaster.blocks()] == [f"transformer.layers.{i}" for i in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_compiled_model_has_the_same_names_loss_and_folder(tune: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    forecaster = toto2.build_for_training(TrainingSettings(model=TINY, tune=tune), None)
    names, expected = list(forecaster.module.state_dict()), mean_loss(forecaster, *windows())
    forecast = forecaster.forecast(_history(), 8)
    forecaster.compile()
    loss = mean_loss(forecaster, *windows())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(forecaster.module.state_dict()) == names
    assert not torch._dynamo.utils.counters["graph_break"]
    forecaster.save(tmp_path / "model")
    np.testing.assert_allclose(toto2.load_forecaster(tmp_path / "model").forecast(_history(), 8), forecast, rtol=1e-5)


def test_the_saved_folder_opens_with_upstream_alone(folder: Path, forecaster: toto2.Toto2Forecaster) -> None:
    history = _history()
    expected = forecaster.forecast(history, 8)
    np.save(folder.parent / "history.npy", history)
    script = (
        "import sys, numpy as np, torch\n"
        "from toto2 import Toto2Model\n"
        "assert not any(name.startswith('toto_pipeline') for name in sys.modules)\n"
        "model = Toto2Model.from_pretrained(sys.argv[1])\n"
        "history = torch.from_numpy(np.load(sys.argv[2]))\n"
        "inputs = dict(target=history, target_mask=torch.ones_like(history, dtype=torch.bool),\n"
        "              series_ids=torch.zeros(history.shape[:2], dtype=torch.long))\n"
        "np.save(sys.argv[3], model.forecast(inputs, 8).numpy())\n"
    )
    answer = folder.parent / "answer.npy"
    subprocess.run(
        [sys.executable, "-c", script, str(folder), str(folder.parent / "history.npy"), str(answer)], check=True
    )
    np.testing.assert_allclose(np.load(answer).transpose(1, 2, 3, 0), expected, rtol=1e-5, atol=1e-6)


def test_a_saved_model_is_loaded_with_its_weights(folder: Path, forecaster: toto2.Toto2Forecaster) -> None:
    np.testing.assert_array_equal(
        toto2.load_forecaster(folder).forecast(_history(), 8), forecaster.forecast(_history(), 8)
    )


def test_weights_that_do_not_fit_the_architecture_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 32}))
    with pytest.raises(WeightsError, match="do not fit the architecture") as caught:
        toto2.load_module(folder)
    assert str(folder) in str(caught.value)


def test_weights_with_a_tensor_missing_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="do not fit"):
        toto2.load_module(folder)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="do not fit"):
        toto2.load_module(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="never loaded"):
        toto2.load_module(folder)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        toto2.load_module(tmp_path)


def test_a_name_that_is_neither_folder_nor_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        locate_weights("/nowhere/at/all", tmp_path)


def test_an_id_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from toto_pipeline.errors import WeightsError\n"
        "from toto_pipeline.models.weights import locate_weights\n"
        "try: locate_weights('Datadog/Toto-2.0-4m', Path(sys.argv[1]))\n"
        "except WeightsError as error: print(error)\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": "", "HF_HUB_CACHE": "", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, env=offline
    )
    assert "'Datadog/Toto-2.0-4m' could not be downloaded" in done.stdout
    assert "hf download Datadog/Toto-2.0-4m" in done.stdout


def test_the_loss_is_the_formula_written_out() -> None:
    """Patch i answers for patch i + 1 with the loc and scale of patch i; nothing counts before 8 seen steps."""
    generator = torch.Generator().manual_seed(0)
    patches, size = 4, 5
    quantiles = torch.randn(9, 1, 1, patches, size, generator=generator)
    target = torch.randn(1, 1, patches * size, generator=generator)
    loc = torch.randn(1, 1, patches, generator=generator).repeat_interleave(size, -1)
    scale = torch.rand(1, 1, patches, generator=generator).repeat_interleave(size, -1) + 0.5
    observed = torch.ones(1, 1, patches * size, dtype=torch.bool)
    observed[..., 12] = False
    kept = torch.ones_like(observed)
    kept[..., 15:] = False

    terms = []
    for patch in range(patches - 1):
        seen = int((observed & kept)[0, 0, : (patch + 1) * size].sum())
        for step in range(size):
            time = (patch + 1) * size + step
            if seen < 8 or not observed[0, 0, time]:
                continue
            scaled = math.asinh((target[0, 0, time] - loc[0, 0, patch * size]) / scale[0, 0, patch * size])
            for level, quantile in zip(QUANTILES, quantiles[:, 0, 0, patch, step].tolist(), strict=True):
                error = scaled - quantile
                terms.append(max(level * error, (level - 1) * error))
    assert len(terms) == 9 * 9  # two patches of five, one step missing

    loss = toto2.next_patch_loss(
        quantiles_QBVNP=quantiles,
        loc_BVT=loc,
        scale_BVT=scale,
        target_BVT=target,
        observed_BVT=observed,
        kept_BVT=kept,
    )
    assert loss.item() == pytest.approx(sum(terms) / 9, rel=1e-5)
    assert toto2.counted_positions(observed, kept, size).sum() == len(terms) / 9
