"""The Trainer of transformers, with a plan that opens one more layer in each epoch.

Trainer builds the optimizer, calls `model.train()` in every step, and saves and resumes; the
callback keeps the plan through all of that. `freeze.optimizer()` gives Trainer an optimizer with
the plan's param groups, and with `guard=True` training fails if anything frozen has changed.
"""

from tempfile import TemporaryDirectory

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from freezekit import FreezePlan
from freezekit.integrations.transformers import FreezeCallback

torch.manual_seed(0)
config = BertConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
)
model = BertForSequenceClassification(config)  # in earnest: .from_pretrained(...)
rows = torch.randint(50, (64, 8))
data = [{"input_ids": row, "labels": (row[0] < 25).long()} for row in rows]

plan = (
    FreezePlan()
    .freeze("bert")
    .unfreeze_layerwise("bert.encoder", start_epoch=1)
    .lr_range("bert.encoder", low=1e-5, high=1e-4)
    .group("classifier", lr=1e-3)
)
freeze = FreezeCallback(plan, guard=True)

with TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=4,
        lr_scheduler_type="constant",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        callbacks=[freeze],
        optimizer_cls_and_kwargs=freeze.optimizer(),
    )
    trainer.train()

layers = [f"bert.encoder.layer.{index}" for index in range(3)]
print("learning rates of layers 0 to 2 and of the classifier:")
for log in trainer.state.log_history[:-1]:  # the last one is about the whole training
    rates = [f"{log[f'lr/{name}']:.0e}" for name in (*layers, "classifier.weight")]
    print(f"epoch {log['epoch']:.0f}:", *rates)
