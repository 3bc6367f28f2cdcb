"""Fine-tune a language model with learning rates that fall from the head to the embeddings.

The layers next to the input hold what any text needs, those next to the output what this task
needs. Layer decay lets the former move less: each layer has 0.8 times the learning rate of the one
above it. Norms and biases get no weight decay. Layers are found in any model; nothing is listed.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from freezekit import FreezePlan, infer_layers

TEXT = "She sells sea shells by the sea shore. The shells she sells are sea shells, I am sure. "

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
)
model = LlamaForCausalLM(config)  # in earnest: LlamaForCausalLM.from_pretrained(...)

applied = FreezePlan().layer_decay(decay=0.8).no_decay().apply(model)
optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)

print("learning rate  layer")
phase = applied.resolved.at()
for layer in reversed(infer_layers(model)):
    print(f"{phase.lr(layer.parameter_names[0], base=1e-2):13.6f}  {layer.name}")

decays = {True: 0, False: 0}
for group in optimizer.param_groups:
    decays[group["weight_decay"] > 0] += len(group["params"])
print(f"{decays[True]} tensors with weight decay, {decays[False]} without")

tokens = torch.tensor(list(TEXT.encode())).unfold(0, 32, 8)
for step in range(31):
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.2f}")
