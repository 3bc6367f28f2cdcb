"""A plan in a file, looked at before anything is trained: what trains, why, and what it costs.

A plan beside the other settings of an experiment is reviewed, compared and kept like them. It is
resolved against names and shapes alone, so the model here is a BERT on the `meta` device: without
weights, and without their memory. `freezekit show MODEL --plan plan.yaml` does it without Python.
"""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from freezekit import FreezePlan, PatternError

with torch.device("meta"):
    model = BertForSequenceClassification(BertConfig())

plan = FreezePlan.load(Path(__file__).with_name("plan.yaml"))
resolved = plan.resolve(model)
print(resolved.summary(epoch=1, depth=2), end="\n\n")
print(resolved.cost(), end="\n\n")
print(resolved.explain("bert.encoder.layer.11.output.LayerNorm.weight"), end="\n\n")

try:
    plan.freeze("bert.encoder.layers").resolve(model)
except PatternError as error:
    print(error)
