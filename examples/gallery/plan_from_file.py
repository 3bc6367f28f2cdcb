"""A plan in a file, looked at before anything is trained: what trains, why, and what it costs.

A plan beside the other settings of an experiment is reviewed, compared and kept like them. It is
resolved against names and shapes alone, so the model here is a BERT on the `meta` device: no
weights, no memory. The same on the command line: `freezekit show MODEL --plan plan.yaml`.
"""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from freezekit import FreezePlan, PatternError

with torch.device("meta"):
    model = BertForSequenceClassification(BertConfig())

plan = FreezePlan.load(Path(__file__).with_name("plan.yaml"))
resolved = plan.resolve(model)
for phase in resolved.phases:
    print(f"{phase}: {len(phase.trainable)} of 201 parameters train")
print()
print(resolved.explain("bert.encoder.layer.11.output.LayerNorm.weight"))
print()
print(resolved.cost())
print()
print(resolved.diff(plan.freeze("bert.encoder.layer[:10]").resolve(model)))
print()

try:
    FreezePlan().freeze("bert.encoder.layers").resolve(model)
except PatternError as error:
    print(error)
