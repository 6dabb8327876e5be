"""Trainings with Hugging Face's trainer, each in a folder of its own: `python -m ... FOLDER`.

One process does them all, as importing it takes long. What each computed is written to `computed.json` beside its log.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from toto_pipeline.integrations.transformers import TrainingLoggerCallback

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "other_frameworks.md"
ROWS = 48
OPTIONS: dict[str, Any] = {"system_seconds": None, "console": False, "config": {"note": "mine", "odd": torch.tanh}}


class Regression(torch.nn.Module):
    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fails_at = fails_at
        self.failure: BaseException = RuntimeError("the data ran away")
        self.calls = 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.failure
        answers = self.layer(inputs)
        return {"loss": torch.nn.functional.mse_loss(answers, labels), "logits": answers}


def rows() -> list[dict[str, torch.Tensor]]:
    inputs = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    return [{"inputs": row, "labels": row.sum(0, keepdim=True)} for row in inputs]


def train(
    folder: Path, model: torch.nn.Module | None = None, *more: TrainerCallback, start: str | None = None, **options: Any
) -> None:
    given = {"num_train_epochs": 2, "logging_steps": 1, "eval_strategy": "epoch", "save_strategy": "no", **options}
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=8, learning_rate=0.1, report_to="none",
        use_cpu=True, disable_tqdm=True, **given,
    )  # fmt: skip
    with TrainingLoggerCallback(folder, **OPTIONS) as callback:
        trainer = Trainer(
            model or Regression(), arguments, train_dataset=rows(), eval_dataset=rows(), callbacks=[callback, *more],
            compute_metrics=lambda _: {"accuracy": 0.5},
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=start)
    (folder / "computed.json").write_text(json.dumps(trainer.state.log_history))


def interrupted_model() -> Regression:
    model = Regression(fails_at=8)
    model.failure = KeyboardInterrupt()
    return model


def main(folder: Path) -> None:
    train(folder / "smooth")
    train(folder / "sparse", logging_steps=5, eval_strategy="steps", eval_steps=4)
    for name, model, error in (
        ("failed", Regression(fails_at=8), RuntimeError),
        ("interrupted", interrupted_model(), KeyboardInterrupt),
    ):
        try:
            train(folder / name, model)
        except error:
            continue
        raise AssertionError(name)
    train(
        folder / "stopped", None, EarlyStoppingCallback(1), num_train_epochs=9, save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    train(folder / "resumed", num_train_epochs=1, save_strategy="epoch")
    train(folder / "resumed", start=str(folder / "resumed" / "trainer" / "checkpoint-6"))
    _, block = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})  # noqa: S102 - the guide's code is to work
    (folder / "modules.json").write_text(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
