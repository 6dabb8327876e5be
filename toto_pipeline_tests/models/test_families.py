"""Families by name, out of the packages that are installed, and the settings that name and describe them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import ValidationError

from toto_pipeline.assets.launchpad import to_training, training_config_class
from toto_pipeline.automation.jobs import run_config
from toto_pipeline.config import RetrainSettings, load_settings
from toto_pipeline.errors import ConfigError, WeightsError
from toto_pipeline.models import families
from toto_pipeline.settings.families import FAMILY_GROUP, OWN_FAMILIES
from toto_pipeline.settings.plugins import installed
from toto_pipeline.settings.training import ModelSettings, TrainingSettings
from toto_pipeline_tests.contracts.linear_family import make_package

OFFERED = {
    "linear": "toto_pipeline_tests.contracts.linear_family",
    "broken": "no_such_module_of_a_plug_in",
    "empty": "toto_pipeline_tests.contracts.linear_family:OPTIONS",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_package(tmp_path / "package", OFFERED)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def model(**settings: Any) -> ModelSettings:
    return ModelSettings.model_validate(settings)


def test_the_package_offers_its_own_families() -> None:
    assert set(OWN_FAMILIES) == {"toto2", "toto1", "chronos"}
    assert set(installed(FAMILY_GROUP)) == {*OWN_FAMILIES, *OFFERED}


def test_a_family_of_another_package_is_found_by_its_name() -> None:
    settings = TrainingSettings(model=model(family="linear", options={"d_model": 8}))
    forecaster = families.build_for_training(settings, None)
    assert forecaster.name == "linear"
    assert forecaster.module.read.out_features == 8


def test_a_misspelt_family_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(assignments=["training.model.family=chronoss"])
    message = str(caught.value)
    assert "training.model.family: " in message
    assert "there is no model family 'chronoss'; did you mean 'chronos'?" in message
    assert "broken, chronos, empty, linear, toto1, toto2" in message


def test_a_family_that_cannot_be_imported_is_named_with_its_package() -> None:
    with pytest.raises(
        ConfigError, match=r"family: broken: no_such_module_of_a_plug_in of linear-models 0\.3 cannot be"
    ):
        families.family("broken")


def test_a_family_without_the_functions_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no build_for_training and no load_forecaster"):
        families.family("empty")


@pytest.mark.parametrize(
    ("name", "library", "way"),
    [("chronos", "chronos", "pip install 'chronos-forecasting"), ("toto1", "toto", "pip install --no-deps toto-ts==")],
)
def test_a_family_without_its_library_says_what_to_install(
    name: str, library: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"toto_pipeline.models.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError) as caught:
        families.family(name)
    assert f"training.model.family: {name}" in str(caught.value)
    assert way in str(caught.value)


def test_the_document_says_the_same_and_its_settings_are_valid() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "model_families.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", document, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line]
    installs = [words[words.index("install") :] for words in commands if "install" in words]
    assert installs == [
        ["install", *shlex.split(part.partition("install ")[2])]
        for way in families._INSTALL.values()
        for part in way.split(" && ")
    ]
    trained = [words for words in commands if words[:2] == ["toto-pipeline", "retrain"]]
    chosen = [load_settings(assignments=words[3::2]).training.model.family for words in trained]
    assert {"chronos", "toto1"} <= set(chosen)


@pytest.mark.parametrize("setting", ["layer_group_size=2", "options={a: 1}"])
def test_a_setting_that_chronos_would_pass_over_is_refused(setting: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"training\.model: .*chronos (has no setting|takes no options).*{setting[0]}"
    ):
        load_settings(assignments=["training.model.family=chronos", f"training.model.{setting}"])


@pytest.mark.parametrize("size", ["patch_size", "d_model", "num_heads", "num_layers", "d_ff", "layer_group_size"])
def test_a_family_from_outside_has_its_sizes_in_its_options(size: str) -> None:
    with pytest.raises(ValidationError, match=rf"has no setting {size}.*go into training\.model\.options"):
        model(family="linear", **{size: 8})
    assert model(family="linear", options={size: 8}).options == {size: 8}


def test_groups_of_layers_are_checked_where_there_are_such() -> None:
    assert model(family="chronos", num_layers=3).num_layers == 3
    for family in ("toto1", "toto2"):
        with pytest.raises(ValidationError, match="must be a multiple of layer_group_size"):
            model(family=family, num_layers=3)


def test_each_family_has_its_own_learning_rate_until_one_is_given() -> None:
    def rate(**settings: Any) -> float:
        return TrainingSettings.model_validate(settings).learning_rate

    assert rate() == rate(model={"weights": "somewhere"}) == 0.1
    assert rate(model={"family": "chronos"}) == rate(model=model(family="linear")) == 1e-3
    assert rate(model={"family": "chronos", "weights": "somewhere"}) == 1e-5
    assert rate(model={"family": "toto1", "weights": "somewhere"}) == 1e-4
    assert rate(model={"family": "chronos"}, learning_rate=0.01) == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": "lora"}, "tune lora"),
        ({"optimizer": "muon"}, "optimizer muon"),
        ({"learning_rate": 0.1}, "learning_rate 0.1 is a rate for the unit-scaled toto2"),
    ],
)
def test_what_only_unit_scaled_models_can_do_is_refused_when_the_settings_are_read(
    given: dict[str, Any], message: str
) -> None:
    for family in ("toto1", "chronos"):
        with pytest.raises(ValidationError, match=message):
            TrainingSettings.model_validate({"model": {"family": family}, **given})
    TrainingSettings.model_validate(given)


def test_a_family_that_cannot_be_sharded_is_refused_with_fsdp() -> None:
    distributed = {"strategy": "fsdp", "processes": 2}
    with pytest.raises(ValidationError, match="strategy fsdp cannot be used with toto1"):
        TrainingSettings.model_validate({"model": {"family": "toto1"}, "distributed": distributed})
    for family in ("toto2", "chronos"):
        TrainingSettings.model_validate({"model": {"family": family}, "distributed": distributed})


def test_recorded_settings_are_read_as_they_were_written() -> None:
    for family in ("toto2", "chronos", "linear"):
        settings = TrainingSettings(model=model(family=family))
        assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


def test_the_launchpad_means_the_same_family_and_rate() -> None:
    from toto_pipeline.definitions import build_definitions

    settings = load_settings(assignments=["training.model.family=chronos", "training.model.d_model=32"])
    launchpad = training_config_class(settings.preset, settings.training)
    assert to_training(launchpad()) == settings.training
    plain = training_config_class("sample", TrainingSettings())
    assert to_training(plain(model={"family": "chronos", "d_model": 32})) == settings.training
    options = load_settings(assignments=["training.model.family=linear", "training.model.options={d_model: 8}"])
    config = run_config(options)
    dg.validate_run_config(build_definitions(RetrainSettings()).resolve_job_def("retrain"), config)
    assert to_training(plain(**config["ops"]["trained_model"]["config"])) == options.training


def test_settings_are_read_without_importing_a_family(package: Path) -> None:
    script = (
        "import sys; from toto_pipeline.config import load_settings\n"
        "for name in ('toto2', 'toto1', 'chronos'): load_settings(assignments=[f'training.model.family={name}'])\n"
        "heavy = ('torch', 'numpy', 'toto2', 'toto', 'chronos', 'transformers', 'toto_pipeline.models')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model of the family `linear`."""
    (tmp_path / "model").mkdir()
    families.save(families.build_for_training(TrainingSettings(model=model(family="linear")), None), tmp_path / "model")
    return tmp_path / "model"


def test_weights_of_another_family_are_refused_with_both_names(folder: Path) -> None:
    with pytest.raises(WeightsError, match="holds weights of the family linear") as caught:
        families.build_for_training(TrainingSettings(model=model(family="toto2")), folder)
    assert "set training.model.family=linear" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"d_model": 256, "layer_group_size": 4}, "toto2"),
        ({"embed_dim": 768, "spacewise_every_n_layers": 12}, "toto1"),
        ({"d_model": 768, "chronos_config": {}, "chronos_pipeline_class": "Chronos2Pipeline"}, "chronos"),
        ({"hidden_size": 1}, None),
    ],
)
def test_the_folders_of_the_makers_are_known_by_their_config(
    config: dict[str, Any], family: str | None, tmp_path: Path
) -> None:
    assert families.family_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert families.family_of(tmp_path) == family


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"family": 3}'])
def test_a_damaged_family_file_is_refused(folder: Path, content: str) -> None:
    (folder / families.FAMILY_FILE).write_text(content)
    with pytest.raises(WeightsError, match=r"family\.json"):
        families.load_forecaster(folder)


def test_a_model_of_a_family_that_is_not_installed_here_names_it(folder: Path) -> None:
    (folder / families.FAMILY_FILE).write_text('{"family": "gone"}')
    with pytest.raises(ConfigError, match="there is no model family 'gone'"):
        families.load_forecaster(folder)
