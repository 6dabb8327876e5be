"""A Lightning training that is watched: python examples/lightning_run.py"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from toto_pipeline.integrations.lightning import TrainingLoggerCallback

RUN = "runs/lightning_run"


class Regression(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


seed_everything(0)
inputs = torch.randn(900, 4)
data = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]) + 0.1 * torch.randn(900, 1))
training, validation = torch.utils.data.random_split(data, [800, 100])
trainer = Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    callbacks=[TrainingLoggerCallback(RUN, sinks=["tensorboard"])],
)  # fmt: skip
trainer.fit(Regression(), DataLoader(training, 16, shuffle=True), DataLoader(validation, 100))
print(f"Look at it:       tensorboard --logdir {RUN}\nIs all of it fed? toto-pipeline follow {RUN}")
