from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.config import PRESETS, RetrainSettings, load_settings, setting_names, training_settings
from toto_pipeline.errors import ConfigError


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "toto.yaml"
    file.write_text("preset: toto2-4m\ntraining:\n  epochs: 5\n  seed: 3\npreparation: {horizon: 48}\n")
    settings = load_settings(file=file, assignments=["training.epochs=7", "data.source=/data/*.csv"])
    assert settings.training.model.d_model == 256  # the preset
    assert settings.training.seed == 3  # the file
    assert settings.training.epochs == 7  # the assignment
    assert settings.preparation.horizon == 48
    assert settings.data.source == "/data/*.csv"
    assert settings.training.early_stopping.patience is None  # a default


def test_a_preset_named_on_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "toto.yaml"
    file.write_text("preset: toto2-4m\n")
    assert load_settings("sample", file).training.model.d_model == 64


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.epochz=3", "did you mean 'training.epochs'"),
        ("horizon=3", "did you mean 'preparation.horizon'"),
        ("trainng.epochs=3", "did you mean 'training'"),
        ("preparation.horizon=0", "preparation.horizon: Input should be greater than or equal to 1 (found 0)"),
        ("training.epochs=many", "training.epochs"),
        ("training.model.num_heads=3", "d_model (64) must be divisible by num_heads (3)"),
        ("schedule.time_zone=Europe/Pariss", "did you mean 'Europe/Paris'"),
        ("training.epochs", "expected key=value"),
    ],
)
def test_a_wrong_setting_is_named_with_the_way_out(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(assignments=[assignment])
    assert expected in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'toto2-4m'"):
        load_settings("toto2-4")


def test_a_settings_file_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    file = tmp_path / "toto.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"toto\.yaml: expected settings"):
        load_settings(file=file)
    file.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_settings(file=file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(file=tmp_path / "missing.yaml")


def test_exponents_are_numbers() -> None:
    assert load_settings(assignments=["training.learning_rate=1e-3"]).training.learning_rate == 1e-3


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_valid_and_names_only_known_settings(preset: str) -> None:
    assert training_settings(preset, {}) == load_settings(preset).training


def test_none_means_as_the_preset_says() -> None:
    settings = training_settings("toto2-4m", {"epochs": None, "model": {"d_model": None, "weights": "x/y"}})
    assert settings.epochs == PRESETS["toto2-4m"]["epochs"]
    assert settings.model.d_model == 256
    assert settings.model.weights == "x/y"


@given(st.sampled_from(setting_names()))
def test_every_setting_can_be_reached_by_its_name(name: str) -> None:
    value: object = load_settings()
    for part in name.split("."):
        value = getattr(value, part)


def test_equal_settings_have_equal_fingerprints() -> None:
    assert RetrainSettings().fingerprint() == load_settings().fingerprint()
    assert load_settings(assignments=["training.seed=1"]).fingerprint() != load_settings().fingerprint()
