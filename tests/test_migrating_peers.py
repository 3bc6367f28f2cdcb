"""The rows of the page "Coming from ..." by timm, skorch and finetuning-scheduler themselves."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from migrations import PEERS, Row
from peer_configs import implicit_schedule
from peer_models import MODELS, ViT
from peer_outcomes import LR, Outcome, stepped
from peer_rules import outcomes
from peer_scripts import AdamW, timm
from vision import load_torchvision

NEEDED = ("timm", "torchvision", "skorch", "finetuning_scheduler")
for needed in NEEDED:
    if find_spec(needed) is None:
        reason = f"{needed} is not installed here: .ci/run has an environment with all peers"
        pytest.skip(reason, allow_module_level=True)
load_torchvision()

pytestmark = pytest.mark.usefixtures("one_thread")
# Lightning and the scheduler warn of few workers, old functions of torch and the like.
quiet = pytest.mark.filterwarnings("ignore")


def rows(peer: str) -> list[Any]:
    """The rows of a peer as parameters of a test."""
    return [pytest.param(row, id=str(at)) for at, row in enumerate(PEERS[peer].rows, start=1)]


def agree(found: list[Outcome], expected: list[Outcome]) -> None:
    """Asserts that the same trains in each epoch, at the rates that are expected if any are."""
    assert [each.keys() for each in found] == [each.keys() for each in expected]
    for one, other in zip(found, expected, strict=True):
        for name, rates in other.items():
            said = {key: value for key, value in rates._asdict().items() if value is not None}
            assert {key: getattr(one[name], key) for key in said} == pytest.approx(said)


def vit_tiny() -> torch.nn.Module:
    """Timm's ViT with the names that the rows are about."""
    with torch.device("meta"):
        model: torch.nn.Module = import_module("timm").create_model(
            "vit_tiny_patch16_224", num_classes=3
        )
    return model


def test_the_vit_of_the_rows_has_the_parameters_of_timm() -> None:
    """Names, order and ranks are those of timm's smallest ViT."""
    found = [(name, each.ndim) for name, each in ViT().named_parameters()]
    assert found == [(name, each.ndim) for name, each in vit_tiny().named_parameters()]


@pytest.mark.parametrize("row", rows("timm"))
def test_timm_trains_what_its_rule_says(row: Row) -> None:
    """Timm freezes and groups as the rule of the page has it."""
    peer = import_module("timm")
    for part in ("utils", "optim"):
        import_module(f"timm.{part}")
    build = vit_tiny if row.model == "ViT" else MODELS[row.model]
    agree(timm(row.theirs, build(), 1, peer), outcomes("timm", row.theirs, MODELS[row.model]()))


def test_timm_leaves_the_rate_to_its_own_schedulers() -> None:
    """The groups of layer decay carry `lr_scale` and no `lr`, so an optimizer gives all one."""
    import_module("timm.optim")
    groups = import_module("timm").optim.param_groups_layer_decay(vit_tiny(), layer_decay=0.75)
    optimizer = torch.optim.AdamW(groups, lr=LR)
    assert {group["lr"] for group in optimizer.param_groups} == {LR}
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 14


@pytest.mark.parametrize("row", rows("skorch"))
def test_skorch_trains_what_its_rule_says(row: Row) -> None:
    """Skorch's callbacks and groups do what the rule of the page has, epoch by epoch."""
    from skorch import NeuralNet
    from skorch.callbacks import Freezer, Unfreezer

    model = MODELS[row.model]()
    options = eval(f"dict({row.theirs})", {"Freezer": Freezer, "Unfreezer": Unfreezer})
    net = NeuralNet(
        model, torch.nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, lr=LR, device=None,
        verbose=0, **options,
    ).initialize()  # fmt: skip
    found = []
    for _ in range(row.epochs):
        net.notify("on_epoch_begin", dataset_train=None, dataset_valid=None)
        found.append(stepped(model, net.optimizer_))
    agree(found, outcomes("skorch", row.theirs, MODELS[row.model](), row.epochs))


def module(model: torch.nn.Module) -> Any:  # noqa: ANN401
    """A LightningModule with the parts of a model; its loss needs no data."""
    from lightning.pytorch import LightningModule

    class Parts(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return sum((each.sum() for each in self.parameters()), batch.sum())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return AdamW(each for each in self.parameters() if each.requires_grad)

    return Parts()


def tiny_bert() -> torch.nn.Module:
    """A BERT classifier with the names of BERT-base."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=8)
    )


def fit(callbacks: list[Any], epochs: int, folder: Path) -> None:
    """Fits a model for some epochs of one step."""
    from lightning.pytorch import Trainer

    keeping = import_module("finetuning_scheduler").FTSCheckpoint(monitor="loss", save_top_k=0)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[*callbacks, keeping],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module(tiny_bert()), torch.utils.data.DataLoader(torch.ones(1)))


def fitted(text: str, epochs: int, folder: Path) -> list[Outcome]:
    """Fits by a schedule and returns what trained in each epoch."""
    from lightning.pytorch import Callback

    found = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
            found.append(stepped(pl_module, trainer.optimizers[0]))

    schedule = yaml.safe_load(text)
    for phase in schedule.values():
        phase.setdefault("max_transition_epoch", epochs)  # the last one ends with the fit
    scheduler = import_module("finetuning_scheduler").FinetuningScheduler(
        ft_schedule=schedule, epoch_transitions_only=True, restore_best=False
    )
    fit([scheduler, Watch()], epochs, folder)
    return found


@quiet
@pytest.mark.parametrize("row", rows("finetuning-scheduler")[:-1])
def test_finetuning_scheduler_trains_what_its_rule_says(row: Row, tmp_path: Path) -> None:
    """A fit by a schedule trains what the rule of the page has, epoch by epoch."""
    found = fitted(row.theirs, row.epochs, tmp_path)
    agree(found, outcomes("finetuning-scheduler", row.theirs, MODELS[row.model](), row.epochs))


@quiet
def test_finetuning_scheduler_makes_the_schedule_that_its_rule_says(tmp_path: Path) -> None:
    """Without a schedule the phases are pairs of parameters, the last ones first."""
    scheduler = import_module("finetuning_scheduler").FinetuningScheduler(
        gen_ft_sched_only=True, epoch_transitions_only=True, log_dir=tmp_path
    )
    with pytest.raises(SystemExit):
        fit([scheduler], 1, tmp_path)
    (path,) = tmp_path.rglob("*_ft_schedule.yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected = implicit_schedule(tiny_bert())
    assert len(expected) == 101
    assert {index: each["params"] for index, each in found.items()} == {
        index: each["params"] for index, each in expected.items()
    }
