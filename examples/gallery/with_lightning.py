"""Lightning, with a plan that trains the head first and then, more slowly, everything.

A new head begins with random weights, and what it sends back in the first epoch may do harm to a
pre-trained body. So the body waits (Kumar et al., 2022: linear probing, then fine-tuning). The
callback applies the plan for the length of the fit, checks that what is frozen does not change, and
gives the model back as it was.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from freezekit import FreezePlan
from freezekit.integrations.lightning import FreezeCallback, applied_to


class Classifier(LightningModule):
    """A body and a head; only `configure_optimizers` knows of the plan."""

    def __init__(self) -> None:
        """Builds the layers, which must be there before the plan is applied."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns an optimizer with the param groups of the plan."""
        return applied_to(self).optimizer(torch.optim.AdamW, lr=1e-2)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Returns the loss; the first batch of each epoch tells what trains."""
        if index == 0:
            print(f"epoch {self.current_epoch}: {applied_to(self).lrs()}")
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])


torch.manual_seed(0)
inputs = torch.randn(64, 8)
loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=16)

plan = FreezePlan().freeze("body", until_epoch=2).group("body", lr_mult=0.1)
trainer = Trainer(
    accelerator="cpu",
    max_epochs=4,
    callbacks=[FreezeCallback(plan, guard=True)],
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
)
trainer.fit(Classifier(), loader)
