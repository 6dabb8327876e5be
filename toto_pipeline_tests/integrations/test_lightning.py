"""Lightning's trainer, watched: what the log holds is what the training did."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from toto_pipeline.events.log import read_events
from toto_pipeline.events.schema import Event
from toto_pipeline.integrations.lightning import TrainingLoggerCallback
from toto_pipeline_tests.integrations.processes import in_two_processes

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "other_frameworks.md"
ROWS, BATCH = 48, 8


class Module(LightningModule):
    """A regression that remembers what it computed. `fails_at` is the batch at which `failure` is raised."""

    def __init__(self, lr: float = 0.1, activation: Any = "tanh", fails_at: int = -1) -> None:  # noqa: ARG002
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)
        self.failure: BaseException = RuntimeError("the data ran away")
        self.losses: list[float] = []
        self.validation_losses: list[float] = []
        self.rates: list[float] = []

    def _loss(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        if len(self.losses) == self.hparams["fails_at"]:
            raise self.failure
        loss = self._loss(batch)
        self.losses.append(loss.item())
        self.log("doubled", 2 * loss)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        loss = self._loss(batch)
        self.validation_losses.append(loss.item())
        self.log_dict({"val_loss": loss, "val_accuracy": 0.5})

    def on_train_epoch_end(self) -> None:
        self.log("late", float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def loader() -> DataLoader[Any]:
    inputs = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), BATCH)


def train(
    folder: Path, module: Module, *more: Callback, epochs: int = 2, start: str | None = None, **options: Any
) -> Any:
    callback = TrainingLoggerCallback(folder, system_seconds=None, console=False, config={"note": "mine"})
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
        callbacks=[callback, *more],
    )
    trainer.fit(module, loader(), loader(), ckpt_path=start)
    assert callback.training_logger is None
    return trainer


def of(folder: Path, kind: str) -> list[Event]:
    return [event for event in read_events(folder) if event["type"] == kind]


def test_every_optimizer_step_has_the_loss_of_its_batches_and_its_own_rate(tmp_path: Path) -> None:
    module = Module()
    train(tmp_path, module, accumulate_grad_batches=2)
    steps = of(tmp_path, "step")
    pairs = zip(module.losses[::2], module.losses[1::2], strict=True)
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event["epoch"] for event in steps] == [0, 0, 0, 1, 1, 1]
    assert [event["loss"] for event in steps] == pytest.approx([(one + other) / 2 for one, other in pairs])
    assert [event["learning_rate"] for event in steps] == module.rates
    assert module.rates[:2] == [0.1, 0.05]
    assert [event["doubled"] for event in steps] == pytest.approx([2 * loss for loss in module.losses[1::2]])
    assert not any("val_loss" in event or "train_loss" in event or "late" in event for event in steps)


def test_an_epoch_has_what_is_logged_of_it_by_the_names_that_tools_show(tmp_path: Path) -> None:
    module = Module()
    train(tmp_path, module)
    epochs = of(tmp_path, "epoch")
    assert [(event["epoch"], event["step"]) for event in epochs] == [(1, 6), (2, 12)]
    losses = [sum(module.losses[first : first + 6]) / 6 for first in (0, 6)]
    assert [event["train_loss"] for event in epochs] == pytest.approx(losses)
    sanity, first, second = (sum(module.validation_losses[a:b]) / (b - a) for a, b in ((0, 2), (2, 8), (8, 14)))
    assert [event["validation_loss"] for event in epochs] == pytest.approx([first, second])
    assert sanity not in (first, second)
    assert [event["metrics"] for event in epochs] == [{"accuracy": 0.5}] * 2
    assert [event["late"] for event in epochs] == [0.0, 1.0]  # logged after the callbacks were told of the end


def test_the_settings_are_known_even_where_json_has_no_word_for_them(tmp_path: Path) -> None:
    train(tmp_path, Module(lr=0.25, activation=torch.tanh))
    (started,) = of(tmp_path, "run_started")
    assert started["config"]["lr"] == 0.25 and started["config"]["note"] == "mine"
    assert "tanh" in started["config"]["activation"]
    assert (started["epochs"], started["steps_per_epoch"], started["total_steps"]) == (2, 6, 12)
    (model,) = of(tmp_path, "model")
    assert "layer" in [module["name"] for module in model["modules"]]


def test_a_validation_in_the_middle_of_an_epoch_comes_with_the_next_step(tmp_path: Path) -> None:
    module = Module()
    train(tmp_path, module, epochs=1, val_check_interval=2, num_sanity_val_steps=0)
    found = {event["step"]: event["val_loss"] for event in of(tmp_path, "step") if "val_loss" in event}
    means = [sum(module.validation_losses[first : first + 6]) / 6 for first in (0, 6, 12)]
    assert found == pytest.approx({3: means[0], 5: means[1]})
    assert of(tmp_path, "epoch")[0]["validation_loss"] == pytest.approx(means[2])


def test_an_error_is_how_it_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ran away"):
        train(tmp_path, Module(fails_at=8))
    (ended,) = of(tmp_path, "run_ended")
    assert (ended["outcome"], ended["reason"]) == ("failed", "RuntimeError: the data ran away")
    assert len(of(tmp_path, "step")) == 8 and len(of(tmp_path, "epoch")) == 1


@pytest.fixture
def signals() -> Iterator[None]:
    """Lightning ignores Ctrl-C from the first on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("signals")
def test_interrupted_it_was_canceled(tmp_path: Path) -> None:
    module = Module(fails_at=3)
    module.failure = KeyboardInterrupt()
    with pytest.raises(SystemExit):
        train(tmp_path, module)
    assert [event["outcome"] for event in of(tmp_path, "run_ended")] == ["canceled"]


def test_stopped_early_it_was_stopped(tmp_path: Path) -> None:
    train(tmp_path, Module(), EarlyStopping("val_accuracy", patience=1), epochs=9)
    assert [event["outcome"] for event in of(tmp_path, "run_ended")] == ["stopped"]
    assert len(of(tmp_path, "epoch")) == 2


def test_a_training_that_goes_on_from_a_checkpoint_is_the_next_attempt(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    trainer = train(tmp_path, Module(), epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.save_checkpoint(checkpoint)
    module = Module()
    train(tmp_path, module, epochs=3, start=checkpoint)
    first, second = of(tmp_path, "run_started")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert (first["resumed_from"], second["resumed_from"]) == (None, 6)
    steps = of(tmp_path, "step")
    assert [event["step"] for event in steps] == list(range(1, 19))
    assert [event["loss"] for event in steps[6:]] == pytest.approx(module.losses)
    assert [event["epoch"] for event in of(tmp_path, "epoch")] == [1, 2, 3]


@pytest.mark.slow
def test_of_two_processes_the_first_records(tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = (
        f"from {__name__} import Module, train\n"
        f"if __name__ == '__main__':\n    train({str(run)!r}, Module(), devices=2, strategy='ddp')\n"
    )
    in_two_processes(script, tmp_path)
    assert len(of(run, "run_started")) == len(of(run, "run_ended")) == 1
    assert [event["step"] for event in of(run, "step")] == list(range(1, 7))


def test_the_guide_makes_such_a_callback() -> None:
    block, _ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)  # noqa: S102 - the guide's code is what is tested
    assert isinstance(found["callback"], TrainingLoggerCallback)
