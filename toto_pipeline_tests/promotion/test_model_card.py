"""The model card: facts, the same for the same facts, and nothing in them that Markdown would act on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from toto_pipeline.data.training_files import TrainingDataManifest
from toto_pipeline.promotion.markdown import code, escape
from toto_pipeline.promotion.model_card import CardFacts, gather, model_card
from toto_pipeline_tests.fixtures.recorded_run import RUN, Recording, record

DATA = TrainingDataManifest(
    fingerprint="f" * 64,
    snapshot="5" * 64,
    frequency="10min",
    season=144,
    context_length=512,
    horizon=96,
    validation_windows=3,
    test_windows=5,
    variates=["target", "a|b"],
    n_series=26,
    n_steps=1000,
    n_missing=7,
    train_start="2016-01-11T17:00:00",
    validation_start="2016-05-01T00:00:00",
    test_start="2016-05-10T00:00:00",
    end="2016-05-27T18:00:00",
    dropped=["series <x> has 3 rows"],
    repairs=[],
)


def facts(folder: Path) -> CardFacts:
    run_folder = record(folder, Recording(epochs=3), promoted=False)
    return gather("toto", run_folder, {"parent_model": "from scratch", "config_hash": "c0ffee"}, DATA)


def test_it_tells_use_data_training_scores_limits_and_lineage(tmp_path: Path) -> None:
    card = model_card(facts(tmp_path))
    for fact in (
        f"# toto: the model of run `{RUN}`",
        "steps of `10min`, with a context of 512 steps and 96 steps ahead",
        "26 series, 1000 steps in all; 7 values are missing",
        "Started from: from scratch.",
        "Parameters: 292416",
        "| New model | 0.7362 | 0.5871 | 0.1582 | 0.2054 | 0.793 |",
        "| Champion | 0.7518 |",
        "**failed**: SQL may be up to 4.1 % higher than the champion's 0.6012.",
        "80 % intervals held 79.3 % of the actual values",
        "The gate refused it: 1 of 2 rules failed.",
        "config\\_hash: `c0ffee`",
        "series \\<x\\> has 3 rows",
    ):
        assert fact in card, fact
    assert model_card(facts(tmp_path / "again")) == card


def test_what_is_not_known_is_left_out() -> None:
    card = model_card(CardFacts(name="toto", run="run-1", tags={}))
    assert card == (
        "# toto: the model of run `run-1`\n\n## Intended use\n\n"
        "- Forecasts of time series as quantiles 0.1 to 0.9 of every step ahead.\n"
    )


def test_a_number_that_is_none_is_called_so(tmp_path: Path) -> None:
    known = facts(tmp_path)
    card = model_card(dataclasses.replace(known, training={"best_validation_loss": float("inf")}))
    assert "Best validation loss: not finite" in card


@given(st.text())
def test_text_stays_on_its_line_and_opens_nothing(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    bare = shown.replace("\\\\", "")
    for special in "`*_[]<>|#":
        assert all(bare[place - 1] == "\\" for place, letter in enumerate(bare) if letter == special)
    fenced = code(text)
    assert fenced == "-" or (fenced.count("`") == 2 and "\n" not in fenced and "|" not in fenced)
