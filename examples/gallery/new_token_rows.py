"""Teach a language model two new tokens: train the new rows of the embeddings, and nothing else.

An embedding is one tensor, so `requires_grad` is all or nothing for it, and zeroing the gradients
of the old rows is not enough: weight decay and momentum move them all the same. `rows=` keeps them
to the last bit. If the output layer is tied to the embeddings, one rule is enough; if not, it has
rows of its own.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from freezekit import FreezePlan, diagnose

OLD, NEW = 100, 102  # vocabulary before and after

for tied in (True, False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=OLD,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    model.resize_token_embeddings(NEW, mean_resizing=False)

    plan = FreezePlan().freeze("**").unfreeze("model.embed_tokens.weight", rows=f"{OLD}:")
    if not tied:
        plan = plan.unfreeze("lm_head.weight", rows=f"{OLD}:")
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    print(f"tied: {tied}; diagnosis: {diagnose(applied)}")

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.tensor([[5, OLD, 7, OLD + 1, 9], [8, OLD + 1, 6, OLD, 4]])
    with applied.guard():
        for _ in range(20):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed = (tensor != before[name]).any(dim=1).nonzero().flatten().tolist()
            print(f"  {name}: rows {changed} of {len(tensor)} changed")
