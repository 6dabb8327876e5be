from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from toto2 import Toto2Model

from toto_pipeline.errors import ConfigError
from toto_pipeline.models import toto2
from toto_pipeline.settings.training import LoraSettings, TrainingSettings
from toto_pipeline_tests.models.small_models import copies, tiny_forecaster, train, trained_parameters, windows


def test_full_tuning_trains_every_weight() -> None:
    forecaster = tiny_forecaster()
    before = copies(forecaster.module.named_parameters())
    train(forecaster, forecaster.optimizer(0.05, 0.0), 2, windows())
    assert all((p != before[name]).any() for name, p in forecaster.module.named_parameters())


def test_head_tuning_moves_the_output_head_and_nothing_else() -> None:
    forecaster = tiny_forecaster(tune="head")
    before = copies(forecaster.module.named_parameters())
    losses = train(forecaster, forecaster.optimizer(0.05, 0.0), 20, windows())
    assert losses[-1] < 0.95 * losses[0]
    moved = {name for name, p in forecaster.module.named_parameters() if (p != before[name]).any()}
    assert moved == {name for name in before if name.startswith("output_head.")}
    assert moved == trained_parameters(forecaster).keys()


def test_head_tuning_keeps_no_gradient_of_the_body() -> None:
    forecaster = tiny_forecaster(tune="head")
    forecaster.loss(*windows()).backward()
    with_gradient = {name for name, p in forecaster.module.named_parameters() if p.grad is not None}
    assert with_gradient == trained_parameters(forecaster).keys()


def test_head_tuning_trains_the_weights_of_the_norm_before_the_head_where_it_has_any(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_forecaster().module.config, norm_include_weight=True)
    Toto2Model(config).save_pretrained(tmp_path)
    forecaster = toto2.build_for_training(TrainingSettings(tune="head"), tmp_path)
    outside = [name for name in trained_parameters(forecaster) if not name.startswith("output_head.")]
    assert outside == ["transformer.out_norm.weight"]


def test_lora_trains_adapters_on_the_named_layers_only() -> None:
    forecaster = tiny_forecaster(tune="lora", lora=LoraSettings(rank=2, targets=["in_proj", "fc2"]))
    layers = {name.partition(".parametrizations.")[0] for name in trained_parameters(forecaster)}
    assert layers == {f"transformer.layers.{i}.{layer}" for i in range(4) for layer in ("attn.in_proj", "ffn.fc2")}
    assert {name.rpartition(".")[2] for name in trained_parameters(forecaster)} == {"A", "B"}
    assert {p.shape[0] if name.endswith("A") else p.shape[1] for name, p in trained_parameters(forecaster).items()} == {
        2
    }


def test_a_target_that_names_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.lora\.targets: no linear layer is called 'q_proj'") as caught:
        tiny_forecaster(tune="lora", lora=LoraSettings(targets=["in_proj", "q_proj"]))
    assert "fc1, fc2, in_proj, out_proj" in str(caught.value)
