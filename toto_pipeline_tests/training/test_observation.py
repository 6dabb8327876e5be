"""What a training records of its model: structure, weights, gradients, updates, forecasts, importance of variates."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from toto_pipeline.data.snapshot import take_snapshot
from toto_pipeline.data.training_data import TrainingData, prepare_training_data
from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.home import Home
from toto_pipeline.models.forecaster import QUANTILES
from toto_pipeline.models.toto2 import load_forecaster
from toto_pipeline.settings.data import DataSettings
from toto_pipeline.training import importance
from toto_pipeline.training.launcher import Training
from toto_pipeline.training.observation import MOST_TENSORS, block_of, is_observed, observed_tensors
from toto_pipeline.training.run_files import write_order
from toto_pipeline.training.windows import Place, validation_places
from toto_pipeline_tests.conftest import CONTEXT_LENGTH, HORIZON, make_training_data, tiny_preparation, write_series
from toto_pipeline_tests.nursery import Nursery
from toto_pipeline_tests.resume.small_runs import history, new_run, of_type, order, weights

STEPS = 6
EPOCHS = 3
SEASON = 24
FORECASTS = ("best", "median", "worst")
SAVED_EACH_STEP: dict[str, Any] = {"checkpoints": {"every_steps": 1, "keep_last": 100}, "restore_best": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("observed")
    return make_training_data(Home(folder).prepare(), write_series(folder / "input"))


@pytest.fixture(scope="module")
def home(data: TrainingData) -> Home:
    return Home(data.folder.parent.parent)


def multivariate(home: Home, source: Path) -> TrainingData:
    """Two series of three variates: `leading` wanders, `following` is what it was a day ago, `noise` owes to none."""
    source.mkdir(parents=True)
    for number in range(2):
        random = np.random.default_rng(number)
        leading = np.cumsum(random.standard_normal(600))
        following = np.roll(leading, HORIZON) + 0.01 * random.standard_normal(600)
        noise = random.standard_normal(600)
        columns = {"leading": leading, "following": following, "noise": noise}
        times = pd.date_range("2026-01-01", periods=600, freq="h")
        pd.DataFrame({"timestamp": times, **columns}).to_csv(source / f"item_{number}.csv", index=False)
    snapshot = take_snapshot(DataSettings(source=str(source), layout="symbols"), home)
    return prepare_training_data(snapshot, tiny_preparation(), home)


@pytest.fixture(scope="module")
def of_many_variates(home: Home, data: TrainingData) -> TrainingData:
    return multivariate(home, data.folder.parent.parent / "symbols")


@pytest.fixture(scope="module")
def run(nursery: Nursery, home: Home, data: TrainingData) -> Path:
    """A real training that nothing happened to, with the state after every step."""
    run_folder = new_run(home, "observed", data, **SAVED_EACH_STEP)
    assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
    return run_folder


def named(run_folder: Path, kind: str) -> dict[tuple[str, int], Event]:
    """Events of a type by name and step; each is there once in an attempt that lives on."""
    return {(event["name"], event["step"]): event for event in of_type(run_folder, kind)}


def kinds(run_folder: Path) -> set[tuple[Any, ...]]:
    """Everything observed, without its values."""
    return {
        (event["type"], event.get("name"), event["step"], tuple(sorted(name for name in event if "update" in name)))
        for event in read_events(run_folder)
        if event["type"] in ("model", "histogram", "figure", "step")
        or (event["type"] == "text" and event["name"] == "importance")
    }


def tensors(run_folder: Path, step: int) -> dict[str, NDArray[np.float64]]:
    saved = load_file(run_folder / "checkpoints" / f"step_{step}" / "model.safetensors")
    return {name: tensor.double().numpy() for name, tensor in saved.items()}


# Which epochs


@given(st.integers(1, 100_000), st.integers(0, 80))
def test_no_more_epochs_are_observed_than_asked_for_and_they_span_the_run(epochs: int, most: int) -> None:
    parts = max(1, most - 1)
    borders = {part * epochs // parts + beside for part in range(parts + 1) for beside in (-1, 0, 1, 2)}
    likely = {1, epochs} | {epoch for epoch in borders if 1 <= epoch <= epochs}  # all of a long run take too long
    candidates = range(1, epochs + 1) if epochs <= 1000 else sorted(likely)
    observed = [epoch for epoch in candidates if is_observed(epoch, epochs, most)]
    assert len(observed) == min(epochs, most)
    assert (epochs in observed) == (most > 0)
    assert (1 in observed) == (most > 1 or most == epochs == 1)
    assert all(later - earlier <= math.ceil(epochs / parts) for earlier, later in pairwise(observed))


def test_a_short_run_is_observed_after_every_epoch_and_a_long_one_sixty_times() -> None:
    assert [is_observed(epoch, 3, 60) for epoch in (1, 2, 3)] == [True] * 3
    assert sum(is_observed(epoch, 50_000, 60) for epoch in range(1, 50_001)) == 60


# Structure, weights, gradients, updates


def test_the_structure_is_recorded_once_when_the_run_begins(run: Path) -> None:
    events = list(read_events(run))
    assert [event["type"] for event in events[:2]] == ["run_started", "model"]
    (model,) = of_type(run, "model")
    parts = model["modules"]
    described = {f"{part['name']}.{key}": shape for part in parts for key, shape in part["parameters"].items()}
    saved = {name: list(tensor.shape) for name, tensor in tensors(run, STEPS).items() if name in described}
    assert described == saved
    assert sum(part["trained"] for part in parts) == events[0]["trained_parameters"]


def test_histograms_of_the_weights_count_every_value_as_it_was_saved(run: Path) -> None:
    found = named(run, "histogram")
    trained = {name.removeprefix("weights/") for name, _ in found if name.startswith("weights/")}
    assert trained
    for step in (STEPS, 2 * STEPS, 3 * STEPS):
        saved = tensors(run, step)
        assert trained <= set(saved)
        for name in trained:
            event = found[f"weights/{name}", step]
            assert sum(event["counts"]) == saved[name].size and event["not_finite"] == 0
            ends = (event["edges"][0], event["edges"][-1])
            expected, _ = np.histogram(saved[name], bins=len(event["counts"]), range=ends)
            assert event["counts"] == expected.tolist()
            assert (event["minimum"], event["maximum"]) == (saved[name].min(), saved[name].max())
            assert event["mean"] == pytest.approx(saved[name].mean())


def test_histograms_of_the_gradients_are_those_that_the_step_used(run: Path) -> None:
    found = named(run, "histogram")
    clip = 1.0
    for step in of_type(run, "step"):
        gradients = [e for (name, at), e in found.items() if at == step["step"] and name.startswith("gradients/")]
        assert bool(gradients) == (step["step"] % STEPS == 0)
        if gradients:
            squares = sum(sum(e["counts"]) * (e["mean"] ** 2 + e["deviation"] ** 2) for e in gradients)
            assert math.sqrt(squares) == pytest.approx(min(step["gradient_norm"], clip), rel=1e-4)


def test_the_ratio_of_an_update_to_its_weight_is_that_of_the_saved_weights(run: Path) -> None:
    trained = [
        name.removeprefix("weights/") for name, step in named(run, "histogram") if step == STEPS and name[0] == "w"
    ]
    for step in of_type(run, "step"):
        ratios = {name: value for name, value in step.items() if name.startswith("update_to_weight")}
        if step["step"] % STEPS:
            assert ratios == {}
            continue
        before, after = tensors(run, step["step"] - 1), tensors(run, step["step"])
        changes = {n: np.linalg.norm(after[n] - before[n]) for n in trained}
        each = [change and change / np.linalg.norm(after[n]) for n, change in changes.items()]
        assert ratios.pop("update_to_weight") == pytest.approx(np.sort(each)[(len(each) - 1) // 2], rel=1e-3)
        layers = {f"transformer.layers.{number}" for number in range(4)}
        assert {name.removeprefix("update_to_weight/") for name in ratios} == {"patch_proj", *layers, "output_head"}
        for name, ratio in ratios.items():
            members = [n for n in trained if n.startswith(name.removeprefix("update_to_weight/") + ".")]
            change = np.concatenate([(after[n] - before[n]).ravel() for n in members])
            whole = np.concatenate([after[n].ravel() for n in members])
            assert ratio == pytest.approx(np.linalg.norm(change) / np.linalg.norm(whole), rel=1e-3)


def test_only_the_largest_tensors_of_a_model_of_very_many_are_observed() -> None:
    sizes = [1 + (7 * number) % (MOST_TENSORS + 40) for number in range(MOST_TENSORS + 40)]
    module = torch.nn.ParameterList([torch.zeros(size) for size in sizes])
    chosen = list(observed_tensors(module).values())
    assert [parameter.numel() for parameter in chosen] == [size for size in sizes if size > 40]
    largest = max(module, key=lambda parameter: parameter.numel())
    largest.requires_grad = False
    assert all(parameter is not largest for parameter in observed_tensors(module).values())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer.layers.11.attn.in_proj.weight", "transformer.layers.11"),
        ("patch_proj.linear1.bias", "patch_proj"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "encoder.block.3"),
        ("scale", "scale"),
    ],
)
def test_a_tensor_belongs_to_its_layer(name: str, block: str) -> None:
    assert block_of(name) == block


def test_nothing_is_changed_by_being_observed_and_nothing_recorded_where_that_is_not_wanted(
    nursery: Nursery, home: Home, data: TrainingData, run: Path
) -> None:
    alone = new_run(home, "not-observed", data, **SAVED_EACH_STEP)
    write_order(alone, replace(order(data, **SAVED_EACH_STEP), observations=0))
    assert nursery.train(alone)["code"] == 0
    assert history(alone) == history(run)
    assert weights(alone) == weights(run)
    assert [kind for kind in kinds(alone) if kind[0] != "step"] == [("model", None, 0, ())]
    assert all(updates == () for *_, updates in kinds(alone))


@pytest.mark.parametrize(
    ("fault", "call"), [("ask to stop at loss", 12), ("ask to stop in validation", 1), ("kill at loss", 13)]
)
def test_a_run_that_goes_on_records_what_one_would_that_was_never_interrupted(
    nursery: Nursery, home: Home, data: TrainingData, run: Path, fault: str, call: int
) -> None:
    run_folder = new_run(home, fault.replace(" ", "-"), data, **SAVED_EACH_STEP)
    nursery.train(run_folder, fault=fault, at=call)
    assert nursery.train(run_folder)["code"] == 0
    assert len(of_type(run_folder, "run_started")) == 2
    assert kinds(run_folder) == kinds(run)
    assert len(of_type(run_folder, "model")) == 1
    values = {key: event["counts"] for key, event in named(run_folder, "histogram").items()}
    assert values == {key: event["counts"] for key, event in named(run, "histogram").items()}
    shown = {key: event["figure"] for key, event in named(run_folder, "figure").items()}
    assert shown == {key: event["figure"] for key, event in named(run, "figure").items()}
    assert weights(run_folder) == weights(run)


# Figures of the forecasts


class Validated:
    """The validation windows of a run, forecast anew from its published weights in one batch."""

    def __init__(self, run_folder: Path, data: TrainingData) -> None:
        self.places = validation_places(data, most=1000, seed=0)
        whole = np.stack([data.window(place.series, place.end, CONTEXT_LENGTH + HORIZON) for place in self.places])
        self.history_BVT, self.actual_BVH = whole[..., :CONTEXT_LENGTH], whole[..., CONTEXT_LENGTH:]
        self.forecast_BVHQ = load_forecaster(run_folder / "model").forecast(self.history_BVT, HORIZON)
        self.median_BVH = self.forecast_BVHQ[..., QUANTILES.index(0.5)]
        error = np.abs(self.actual_BVH - self.median_BVH).mean(axis=-1)
        seasonal = np.abs(self.history_BVT[..., SEASON:] - self.history_BVT[..., :-SEASON]).mean(axis=-1)
        self.mase_BV = error / seasonal


def test_the_forecasts_shown_are_the_best_the_middle_and_the_worst_of_the_validation(
    run: Path, data: TrainingData
) -> None:
    validated, found = Validated(run, data), named(run, "figure")
    names = {f"forecast/{name}" for name in FORECASTS} | {"predicted_vs_actual"}
    assert set(found) == {(name, STEPS * epoch) for name in names for epoch in range(1, EPOCHS + 1)}
    ordered = sorted(np.ndindex(validated.mase_BV.shape), key=lambda at: validated.mase_BV[at])
    for name, at in zip(FORECASTS, (ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]), strict=True):
        event = found[f"forecast/{name}", EPOCHS * STEPS]
        assert event["epoch"] == EPOCHS
        figure = event["figure"]
        assert figure["history"] == pytest.approx(validated.history_BVT[at])
        assert figure["actual"] == pytest.approx(validated.actual_BVH[at])
        assert list(figure["quantiles"]) == [f"{level:g}" for level in QUANTILES]
        quantiles = np.array(list(figure["quantiles"].values()))
        np.testing.assert_allclose(quantiles, validated.forecast_BVHQ[at].T, rtol=1e-4)
        place = validated.places[at[0]]
        start = pd.Timestamp("2026-01-01") + pd.Timedelta(int(place.end) - HORIZON, "h")
        expected = f"sensor_{place.series} from {start:%Y-%m-%dT%H:%M}: MASE {validated.mase_BV[at]:.3g}"
        assert figure["title"] == expected


def test_the_scatter_shows_median_forecasts_against_what_came(run: Path, data: TrainingData) -> None:
    validated, found = Validated(run, data), named(run, "figure")
    scatters = [found["predicted_vs_actual", STEPS * epoch]["figure"] for epoch in range(1, EPOCHS + 1)]
    assert scatters[0]["x"] == scatters[1]["x"] == scatters[2]["x"]  # the same steps each time
    assert scatters[0]["y"] != scatters[2]["y"]
    shown = np.array([scatters[2]["x"], scatters[2]["y"]]).T
    every = np.stack([validated.actual_BVH.ravel(), validated.median_BVH.ravel()], axis=1)
    assert shown.shape == every.shape  # fewer than 2000, so all
    np.testing.assert_allclose(shown, every, rtol=1e-4)
    assert scatters[2]["diagonal"]


def test_no_more_than_two_thousand_points_are_shown(nursery: Nursery, home: Home, tmp_path: Path) -> None:
    many = make_training_data(home, write_series(tmp_path / "input", series=80))  # 160 windows of 16 steps
    run_folder = new_run(home, "many-series", many, epochs=2, steps_per_epoch=1, validation_batches=100)
    assert nursery.train(run_folder)["code"] == 0
    first, figure = (e["figure"] for (name, _), e in named(run_folder, "figure").items() if "actual" in name)
    assert 1800 < len(figure["x"]) == len(figure["y"]) <= 2000
    assert figure["x"] == first["x"]  # the same steps of the windows each time
    assert {round(value / 10) for value in figure["x"]} >= set(range(2, 80))  # of every series


# Importance of variates


def follow(history_BVT: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
    """Forecasts that rest on the first variate only, and on the second in small part."""
    rests = history_BVT[:, :1, -horizon:] + 0.1 * history_BVT[:, 1:2, -horizon:]
    median = np.broadcast_to(rests, (*history_BVT.shape[:2], horizon))
    return np.repeat(median[..., None], len(QUANTILES), axis=-1).astype(np.float32)


def rises(data: TrainingData, batch_size: int = 4, seed: int = 0) -> dict[str, float]:
    variates, places = len(data.manifest.variates), validation_places(data, most=1000, seed=0)
    plan = importance.plan(variates, places, np.random.default_rng(seed))
    assert plan is not None
    return importance.importance(follow, data, plan, np.random.default_rng(seed), batch_size=batch_size)


def test_the_variate_that_the_forecasts_rest_on_is_found(of_many_variates: TrainingData) -> None:
    found = rises(of_many_variates)
    first, second, third = of_many_variates.manifest.variates
    assert next(iter(found)) == first
    assert abs(found[second]) < found[first] / 2 and found[second] != 0
    assert found[third] == 0
    assert found == rises(of_many_variates, batch_size=1) == rises(of_many_variates)


def test_importance_is_the_rise_of_the_scaled_quantile_loss(of_many_variates: TrainingData) -> None:
    data = of_many_variates
    places = validation_places(data, most=1000, seed=0)[:2]
    plan = importance.Plan([0], places)  # with two windows there is only one way to exchange their histories
    whole = np.stack([data.window(place.series, place.end, CONTEXT_LENGTH + HORIZON) for place in places])
    usual, actual = whole[..., :CONTEXT_LENGTH], whole[..., CONTEXT_LENGTH:]
    scale = np.abs(usual[..., SEASON:] - usual[..., :-SEASON]).mean(axis=-1)
    permuted = usual.copy()
    permuted[:, 0] = usual[::-1, 0]

    def loss(histories: NDArray[np.float32]) -> float:
        error = np.abs(actual - follow(histories, HORIZON)[..., 0]).mean(axis=-1)  # of equal quantiles, this is it
        return float((error / scale).mean())

    found = importance.importance(follow, data, plan, np.random.default_rng(5), batch_size=3)
    assert found == {data.manifest.variates[0]: pytest.approx(100 * (loss(permuted) / loss(usual) - 1), rel=1e-4)}


@given(st.integers(1, 200), st.integers(0, 400), st.integers(0, 9))
def test_importance_takes_no_more_forecasts_than_it_says(variates: int, windows: int, seed: int) -> None:
    places = [Place(0, end) for end in range(windows)]
    plan = importance.plan(variates, places, np.random.default_rng(seed))
    assert (plan is None) == (variates < 2 or windows < 2)
    if plan is not None:
        assert len(plan.variates) == min(variates, importance.MOST_VARIATES) == len(set(plan.variates))
        assert 2 <= len(plan.places) == len(set(plan.places))
        assert plan.windows <= max(windows / 2, 2 * (1 + len(plan.variates)))


@given(st.integers(2, 50), st.integers(0, 9))
def test_every_window_gets_another_ones_history(count: int, seed: int) -> None:
    order = importance.exchanged(count, np.random.default_rng(seed))
    assert sorted(order) == list(range(count))
    assert not (order == np.arange(count)).any()


def test_a_run_on_series_of_many_variates_shows_their_importance_at_its_end(
    nursery: Nursery, home: Home, of_many_variates: TrainingData, run: Path
) -> None:
    run_folder = new_run(home, "variates", of_many_variates)
    assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
    shown = {key: e["figure"] for key, e in named(run_folder, "figure").items() if key[0] == "importance"}
    assert list(shown) == [("importance", EPOCHS * STEPS)]  # the epochs are too short for it to be cheap before
    (figure,) = shown.values()
    assert sorted(figure["labels"]) == sorted(of_many_variates.manifest.variates)
    assert figure["values"] == sorted(figure["values"], reverse=True)
    assert ("importance", 0) not in named(run_folder, "text")
    assert "one variate" in named(run, "text")["importance", 0]["text"]


def test_importance_is_shown_after_each_observed_epoch_where_the_epochs_are_long(
    nursery: Nursery, home: Home, of_many_variates: TrainingData
) -> None:
    run_folder = new_run(home, "long-epochs", of_many_variates, epochs=2, steps_per_epoch=100)
    assert nursery.train(run_folder)["code"] == 0, (run_folder / "trainer.log").read_text()
    assert [step for name, step in named(run_folder, "figure") if name == "importance"] == [100, 200]


def test_a_run_that_is_stopped_early_shows_the_importance_too(
    nursery: Nursery, home: Home, of_many_variates: TrainingData
) -> None:
    stopping = {"epochs": 30, "early_stopping": {"patience": 1, "min_delta": 10.0}}
    run_folder = new_run(home, "stopped-early", of_many_variates, **stopping)
    assert nursery.train(run_folder)["code"] == 0
    (ended,) = of_type(run_folder, "run_ended")
    assert ended["outcome"] == "stopped"
    assert [step for name, step in named(run_folder, "figure") if name == "importance"] == [ended["step"]]


# TensorBoard


def test_tensorboard_shows_histograms_distributions_images_and_the_graph_of_a_real_run(run: Path) -> None:
    from tensorboard.plugins.distribution.compressor import compress_histogram
    from tensorboard.util.tensor_util import make_ndarray

    from toto_pipeline_tests.monitoring.tensorboard_reading import feed, plugin_of, points_of, server

    feed(run, list(read_events(run)))
    shown = server(run)
    plugins: dict[str, set[str]] = {}
    for tag in shown.Tags()["tensors"]:
        plugins.setdefault(plugin_of(shown, tag), set()).add(tag)
    assert shown.Tags()["graph"]
    assert plugins["histograms"] == {name for name, _ in named(run, "histogram")}
    assert plugins["images"] == {f"figures/{name}" for name, _ in named(run, "figure")}
    every_epoch = [STEPS, 2 * STEPS, 3 * STEPS]
    for tag in plugins["histograms"]:
        assert [event.step for event in shown.Tensors(tag)] == every_epoch
    buckets = make_ndarray(shown.Tensors("weights/patch_proj.linear1.weight")[-1].tensor_proto)
    _, distribution = zip(*compress_histogram(buckets), strict=True)  # what the page draws
    assert list(distribution) == sorted(distribution) and distribution[0] < distribution[-1]
    for tag in plugins["images"]:
        assert [event.step for event in shown.Tensors(tag)] == every_epoch
    curve = [(step, value) for tag, step, value in points_of(shown) if tag == "train/update_to_weight"]
    assert [step for step, _ in curve] == every_epoch
    assert all(0 < value < 1 for _, value in curve)


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_record_what_one_does(home: Home, of_many_variates: TrainingData, strategy: str) -> None:
    found = []
    for name, spread in (("one", {}), ("two", {"distributed": {"processes": 2, "strategy": strategy}})):
        run_folder = home.run(f"{name}-{strategy}")
        run_folder.mkdir()
        with Training(run_folder, order(of_many_variates, **spread)) as training:
            for _ in training.events():
                pass
            assert training.ending()["outcome"] == "completed"
        found.append(run_folder)
    one, two = found
    assert kinds(two) == kinds(one)
    for key, event in named(one, "histogram").items():
        other = named(two, "histogram")[key]
        assert sum(other["counts"]) == sum(event["counts"])
        assert (other["mean"], other["deviation"]) == pytest.approx((event["mean"], event["deviation"]), abs=1e-3)
    first, other = (named(each, "figure")["predicted_vs_actual", STEPS]["figure"] for each in found)
    assert other["x"] == first["x"]
    assert other["y"] == pytest.approx(first["y"], rel=1e-3, abs=1e-3)
