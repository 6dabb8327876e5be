"""Checkpoints that were written long ago can still be read."""

from pathlib import Path

import pytest
import torch

from toto_pipeline.checkpoints.manager import Checkpoint, CheckpointManager, State
from toto_pipeline.checkpoints.manifest import SCHEMA, read_manifest
from toto_pipeline_tests.checkpoints.golden.make import HERE, golden_state, make


def _load(folder: Path) -> State:
    manager = CheckpointManager(folder)  # never written to: `load` takes a checkpoint wherever it is
    return manager.load(Checkpoint(folder / "step_8", read_manifest(folder / "step_8")))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_schema_1_loads_and_its_loss_is_one_of_the_metrics() -> None:
    state = _load(HERE / "schema_1")
    assert (state.step, state.epoch, state.schema) == (8, 2, 1)
    assert state.metrics == {"validation_loss": 0.2695544958114624}
    assert set(state.tensors) == {"model", "optimizer", "random"}
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors["model"].values())
    assert state.values["optimizer_groups"][0]["lr"] == 0.025


def test_schema_2_loads_bit_for_bit() -> None:
    state, golden = _load(HERE / "schema_2"), golden_state()
    assert (state.step, state.epoch, state.metrics, state.values, state.schema) == (
        8,
        2,
        golden.metrics,
        golden.values,
        2,
    )
    assert {group: set(tensors) for group, tensors in state.tensors.items()} == {
        group: set(tensors) for group, tensors in golden.tensors.items()
    }
    for group, tensors in golden.tensors.items():
        for name, tensor in tensors.items():
            found = state.tensors[group][name]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert found.equal(tensor), name


@pytest.mark.skipif(SCHEMA != 2, reason="schema 2 is not written any more")
def test_what_is_written_today_is_the_golden_checkpoint_to_the_byte(tmp_path: Path) -> None:
    make(tmp_path)
    assert _files(tmp_path) == _files(HERE / "schema_2")
    assert sum(map(len, _files(tmp_path).values())) < 30_000
