"""A training with Hugging Face's Trainer that is watched: python examples/transformers_run.py"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from toto_pipeline.integrations.transformers import TrainingLoggerCallback

RUN, WORDS, LENGTH = "runs/transformers_run", 17, 12

torch.manual_seed(0)
starts, strides = torch.randint(WORDS, (400, 1)), torch.randint(1, 4, (400, 1))
texts = (starts + strides * torch.arange(LENGTH)) % WORDS
data = [{"input_ids": text, "labels": text} for text in texts]
model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2))
arguments = TrainingArguments(
    output_dir=f"{RUN}/trainer",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    learning_rate=0.01,
    logging_steps=1,
    eval_strategy="epoch",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
with TrainingLoggerCallback(RUN, sinks=["tensorboard"]) as callback:
    trainer = Trainer(model, arguments, train_dataset=data[:320], eval_dataset=data[320:], callbacks=[callback])
    trainer.train()
print(f"Look at it:       tensorboard --logdir {RUN}\nIs all of it fed? toto-pipeline follow {RUN}")
