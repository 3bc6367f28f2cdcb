"""The optimizers of torch that a plan can be carried out beside, by name."""

import inspect

import torch

OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls not in (torch.optim.Optimizer, torch.optim.LBFGS)
)
DENSE = [name for name in OPTIMIZERS if name not in ("SparseAdam", "Muon")]
"""Those that take dense gradients of any shape."""
