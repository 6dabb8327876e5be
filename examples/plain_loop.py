"""A plain PyTorch loop that is watched: python examples/plain_loop.py"""

import torch

from toto_pipeline.events import TrainingLogger

RUN, EPOCHS, STEPS, RATE = "runs/plain_loop", 3, 50, 0.1

torch.manual_seed(0)
inputs = torch.randn(1000, 4)
targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]) + 0.1 * torch.randn(1000, 1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)

with TrainingLogger(
    RUN, config={"lr": RATE, "batch": 16}, epochs=EPOCHS, steps_per_epoch=STEPS, sinks=["tensorboard"]
) as log:
    log.model(model)
    for _ in range(EPOCHS):
        for batch in torch.randint(900, (STEPS, 16)):
            loss = torch.nn.functional.mse_loss(model(inputs[batch]), targets[batch])
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            log.step(loss=loss.detach(), lr=schedule.get_last_lr()[0], gradient_norm=norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        with torch.no_grad():
            validation_loss = torch.nn.functional.mse_loss(model(inputs[900:]), targets[900:])
        log.epoch(validation_loss=validation_loss)
        log.histogram("weights", model.weight)

print(f"Look at it:       tensorboard --logdir {RUN}\nIs all of it fed? toto-pipeline follow {RUN}")
