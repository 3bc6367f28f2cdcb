"""diagnose: each fault, seeded alone, is found with its code; healthy set-ups give nothing."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import SWALR, AveragedModel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from freezekit import AppliedPlan, FreezekitError, FreezePlan, diagnose
from freezekit._findings import Finding
from freezekit._setup import Helper

COMPILE_IMPORTS = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
Factory = Callable[[torch.optim.Optimizer], LRScheduler]


class Net(nn.Module):
    """Two blocks with norms and dropout, and a head."""

    def __init__(self, *, affine: bool = True) -> None:
        """Has four features and two classes."""
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=affine), nn.Dropout())
            for _ in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns two features."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


GRADUAL = (
    FreezePlan()
    .freeze("blocks")
    .unfreeze("blocks[1]", lr_mult=0.1, at_epoch=1)
    .unfreeze("blocks[0]", lr_mult=0.01, at_epoch=2)
    .freeze("head", at_epoch=3)
)


def train(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Takes one step, leaving the gradients."""
    model.train()
    for optimizer in optimizers:
        optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def train_thrice(model: nn.Module) -> None:
    """Takes three steps."""
    for _ in range(3):
        train(model)


def only(target: AppliedPlan | nn.Module, *helpers: Helper) -> Finding:
    """Returns the only finding."""
    found = diagnose(target, *helpers)
    assert len(found) == 1, str(found)
    return found[0]


def groups(*lrs: float) -> torch.optim.Optimizer:
    """Returns an optimizer with one group per learning rate, each with one parameter of `THREE`."""
    return torch.optim.SGD(
        [{"params": [p], "lr": lr, "name": name}
         for (name, p), lr in zip(THREE.named_parameters(), lrs, strict=True)],
        lr=1.0,
    )  # fmt: skip


THREE = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in ("low", "mid", "top")})


@pytest.fixture
def one_process() -> Iterator[None]:
    """Forms a process group of one, without a port or a file."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nothing_found_is_false_and_says_so() -> None:
    """Without a fault the result is empty, false, and prints as such."""
    found = diagnose(Net())
    assert not found
    assert list(found) == []
    assert str(found) == "nothing found"
    assert repr(found) == "<Findings: none>"


def test_findings_print_as_what_why_and_fix() -> None:
    """`str` shows code and severity, what, why and fix of every finding, in the order of codes."""
    model = Net()
    model.blocks.requires_grad_(False)
    model.blocks[0][0].weight.grad = torch.zeros(4, 4)
    found = diagnose(model, torch.optim.SGD([model.head.weight], lr=0.1))
    assert str(found).splitlines()[:4] == [
        "FK001 error: a parameter trains but is in no optimizer: head.bias",
        "  why: it gets gradients, but nothing steps it",
        "  fix: build the optimizer from all parameters that train, or freeze these",
        "FK005 warning: a frozen parameter has a gradient: blocks.0.0.weight",
    ]
    assert found.codes == ("FK001", "FK005", "FK006")
    assert repr(found) == "<Findings: FK001, FK005, FK006>"
    assert "%s" % found[0] == str(found[0])  # noqa: UP031 - a tuple would be taken apart


def test_many_names_are_counted_and_cut() -> None:
    """The text shows the first four names and how many more there are; `names` has all."""
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(50))
    finding = only(model, torch.optim.SGD([model[0].weight], lr=0.1))
    assert finding.what.endswith("optimizer: 0.bias, 1.weight, 1.bias, 2.weight and 95 more")
    assert finding.what.startswith("99 parameters train")
    assert len(finding.names) == 99


def test_fk001_trains_without_optimizer() -> None:
    """FK001: a trainable parameter that no optimizer holds."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    finding = only(applied, torch.optim.SGD([model.head.weight], lr=0.1))
    assert (finding.code, finding.severity) == ("FK001", "error")
    assert finding.names == ("head.bias",)
    assert "nothing steps it" in finding.why
    assert "applied.optimizer(...)" in finding.fix


def test_fk001_opens_later_without_optimizer() -> None:
    """FK001: a parameter that a later phase opens is missed before that phase begins."""
    model = Net()
    applied = GRADUAL.apply(model)
    finding = only(applied, torch.optim.SGD(model.head.parameters(), lr=0.1))
    assert finding.code == "FK001"
    assert finding.what.startswith("8 parameters open in a later phase but are in no optimizer")
    assert set(finding.names) == {n for n, _ in model.named_parameters() if n.startswith("blocks")}
    assert "silently" in finding.why


def test_fk001_needs_an_optimizer_and_looks_ahead_only() -> None:
    """FK001 is not given without an optimizer, nor for what has trained and will not again."""
    model = Net()
    applied = FreezePlan().freeze("head", at_epoch=1).apply(model)
    assert not diagnose(applied)
    applied.advance(epoch=1)
    assert not diagnose(applied, torch.optim.SGD(model.blocks.parameters(), lr=0.1))
    applied.advance(epoch=0)
    assert only(applied, torch.optim.SGD(model.blocks.parameters(), lr=0.1)).code == "FK001"


def test_fk001_leaves_out_phases_that_cannot_come() -> None:
    """A phase that only a metric could have begun, and that the clock has passed, is over."""
    stall = {"monitor": "loss", "mode": "min", "patience": 1, "min_delta": 0.0}
    model = Net()
    plan = FreezePlan().freeze("head", at_epoch=2).freeze("blocks[0]", at_metric=stall)
    applied = plan.apply(model)
    applied.advance(epoch=2, metrics={"loss": 1.0})
    assert not diagnose(applied, torch.optim.SGD(model.blocks.parameters(), lr=0.1))


def test_fk002_never_trains() -> None:
    """FK002: a parameter that an optimizer holds and no phase opens."""
    model = Net()
    applied = FreezePlan().freeze("blocks").unfreeze("blocks[1]", at_epoch=1).apply(model)
    finding = only(applied, torch.optim.AdamW(model.parameters()))
    assert (finding.code, finding.severity) == ("FK002", "info")
    assert finding.names == tuple(
        f"blocks.0.{name}" for name, _ in model.blocks[0].named_parameters()
    )
    assert "costs nothing" in finding.why
    assert "only what trains" in finding.fix


def test_fk002_is_an_error_where_frozen_parameters_are_stepped() -> None:
    """FK002 is an error with LBFGS, which moves parameters without a gradient."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    finding = only(model, torch.optim.LBFGS(model.parameters()))
    assert (finding.code, finding.severity) == ("FK002", "error")
    assert "LBFGS" in finding.why


def test_fk003_in_two_optimizers() -> None:
    """FK003: two optimizers hold one parameter; the same optimizer given twice is no fault."""
    model = nn.Linear(2, 2)
    first = torch.optim.SGD([{"params": [*model.parameters()], "name": "all"}], lr=0.1)
    second = torch.optim.Adam([model.bias])
    finding = only(model, first, second)
    assert (finding.code, finding.severity, finding.names) == ("FK003", "error", ("bias",))
    assert "so it moves twice; bias is in 'all' of SGD and 'group 0' of Adam" in finding.why
    assert "applied.optimizer(cls, pattern, lr=...)" in finding.fix
    assert not diagnose(model, first, first)


def test_fk003_twice_in_one_optimizer() -> None:
    """FK003: one optimizer holds a parameter twice, after its groups were edited by hand."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1)
    optimizer.param_groups[1]["params"].append(model.weight)
    finding = only(model, optimizer)
    assert (finding.code, finding.names) == ("FK003", ("weight",))


def test_fk003_two_objects_on_one_tensor() -> None:
    """FK003: two Parameter objects that share memory are stepped each by itself."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    finding = only(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (finding.code, finding.names) == ("FK003", ("0.weight", "1.weight"))
    assert "same memory" in finding.what
    assert "one Parameter object" in finding.fix


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_fk004_stale_objects_after_assign(named: bool) -> None:
    """FK004: `load_state_dict(assign=True)` leaves the optimizer with the old objects."""
    model = Net()
    held = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.AdamW(held)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    finding = only(model, optimizer)
    assert (finding.code, finding.severity) == ("FK004", "error")
    assert finding.what.startswith("10 parameters in optimizers are not in the model any more: ")
    assert set(finding.names) == {name for name, _ in model.named_parameters()}
    assert "load_state_dict(assign=True)" in finding.why
    assert "after the last change of the model" in finding.fix


def test_fk004_names_seen_through_a_wrapper() -> None:
    """FK004: an optimizer built from a wrapper's names tells of which parameter its object was."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(nn.DataParallel(model).named_parameters(), lr=0.1)
    model[1] = nn.Linear(2, 2)
    assert optimizer.param_groups[0]["param_names"][2] == "module.1.weight"
    finding = only(model, optimizer)
    assert (finding.code, finding.names) == ("FK004", ("1.weight", "1.bias"))


def test_fk004_a_parameter_under_its_old_name() -> None:
    """FK004: the tensor that a parametrization split is named as it was."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    parametrizations.weight_norm(model[1])
    found = diagnose(model, optimizer)
    assert found.codes == ("FK001", "FK004")
    assert found[1].names == ("1.weight",)


def test_fk004_module_replaced_under_a_plan() -> None:
    """FK004: a module put in another's place is named once, as is what the optimizer holds."""
    model = Net()
    applied = GRADUAL.apply(model)
    applied.optimizer(torch.optim.SGD, lr=0.1)
    model.blocks[1] = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    first, second = diagnose(applied)
    assert {first.code, second.code} == {"FK004"}
    assert set(first.names) == {
        f"blocks.1.{name}" for name, _ in model.blocks[1].named_parameters()
    }
    assert second.names == ("blocks.1",)
    assert "a module was replaced since the plan was applied" in second.what
    assert "apply it again" in second.fix


def test_fk004_spares_what_belongs_to_something_else() -> None:
    """A loss with parameters of its own may share the optimizer, named or not."""
    model, weights = Net(), nn.Parameter(torch.zeros(2))
    assert not diagnose(model, torch.optim.SGD([*model.parameters(), weights], lr=0.1))
    named = [*model.named_parameters(), ("log_variances", weights)]
    assert not diagnose(model, torch.optim.SGD(named, lr=0.1))
    twin = [{"params": [*each.named_parameters()]} for each in (model, Net())]
    assert not diagnose(model, torch.optim.SGD(twin, lr=0.1))


@pytest.mark.parametrize("held", [True, False])
def test_fk005_gradient_on_a_frozen_parameter(held: bool) -> None:
    """FK005: an error if an optimizer would step it, else a warning."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    applied = FreezePlan().freeze("0", at_epoch=1).apply(model)
    optimizer = torch.optim.SGD((model if held else model[1]).parameters(), lr=0.1)
    applied.advance(epoch=1)
    model[0].bias.grad = torch.zeros(2)
    finding = only(applied, optimizer)
    assert (finding.code, finding.names) == ("FK005", ("0.bias",))
    assert finding.severity == ("error" if held else "warning")
    assert "one of zeros" in finding.why
    assert "parameter.grad = None" in finding.fix


def frozen_affine() -> nn.Module:
    """Returns a model with a frozen BatchNorm."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    return model


def frozen_around() -> nn.Module:
    """Returns a model with a norm without parameters in a frozen block."""
    model = Net(affine=False)
    model.blocks[0].requires_grad_(False)
    return model


def frozen_spectral() -> nn.Module:
    """Returns a model with a frozen spectral norm, which updates itself in train mode."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def frozen_old_spectral() -> nn.Module:
    """Returns a model with a frozen spectral norm of the older kind, a hook."""
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (frozen_affine, "1"),
        (frozen_around, "blocks.0.1"),
        (frozen_spectral, "0.parametrizations.weight.0"),
        (frozen_old_spectral, "0"),
    ],
)
def test_fk006_frozen_norm_in_train_mode(build: Callable[[], nn.Module], name: str) -> None:
    """FK006: the state of a frozen norm moves in train mode; in eval there is no fault."""
    model = build()
    before = copy.deepcopy(model.state_dict())
    finding = only(model)
    assert (finding.code, finding.severity, finding.names) == ("FK006", "error", (name,))
    assert "changes its statistics" in finding.why
    assert "by a plan" in finding.fix
    train(model)
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any(key.startswith(name) for key in moved)
    model.get_submodule(name).eval()
    assert "FK006" not in diagnose(model).codes


@pytest.mark.parametrize("affine", [True, False])
def test_fk006_held_norm_switched_by_hand(affine: bool) -> None:
    """FK006: a norm that a plan holds, put in train mode behind its back."""
    model = Net(affine=affine)
    applied = FreezePlan().freeze("blocks").apply(model)
    assert not diagnose(applied)
    model.blocks[1][1].training = True
    assert only(applied).names == ("blocks.1.1",)
    assert only(model).names == ("blocks.1.1",)


def test_fk006_spares_what_a_plan_leaves_in_train_mode() -> None:
    """`frozen_mode="train"` is a wish; norms without statistics have nothing to lose."""
    model = Net()
    applied = FreezePlan().freeze("blocks", frozen_mode="train").apply(model.train())
    assert not diagnose(applied)
    assert not diagnose(model)
    beside = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)))
    beside.append(nn.Linear(4, 2))
    assert not diagnose(FreezePlan().freeze("[0]").unfreeze("[0][1]").apply(beside))
    constant = FrozenBatchNorm()
    assert constant.training
    assert not diagnose(nn.Sequential(nn.Sequential(constant), nn.Linear(4, 2)))
    stateless = nn.Sequential(nn.LayerNorm(4), nn.InstanceNorm1d(4, affine=True), nn.Linear(4, 2))
    stateless[:2].requires_grad_(False)
    assert not diagnose(stateless)


class FrozenBatchNorm(nn.Module):
    """A norm whose statistics never change, as detection models have it."""

    def __init__(self) -> None:
        """Has statistics under the usual names."""
        super().__init__()
        self.linear = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))


def tied_by_data() -> nn.Module:
    """Returns a model that was tied by `data`, the upper name frozen."""
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight.data = model["embedding"].weight.data
    model["head"].requires_grad_(False)
    return model


def tied_and_assigned() -> nn.Module:
    """Returns a model whose tie became two objects when a state dict was assigned."""
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    model["head"].requires_grad_(False)
    return model


def part_of_another() -> nn.Module:
    """Returns a model in which a frozen parameter is a part of a trainable one."""
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 2, bias=False)})
    model["head"].weight = nn.Parameter(model["embedding"].weight.data[1:3], requires_grad=False)
    return model


@pytest.mark.parametrize("build", [tied_by_data, tied_and_assigned, part_of_another])
def test_fk007_half_frozen(build: Callable[[], nn.Module]) -> None:
    """FK007: memory that is frozen under one name and trained under another."""
    model = build()
    finding = only(model, torch.optim.SGD(model["embedding"].parameters(), lr=0.1))
    assert (finding.code, finding.severity) == ("FK007", "error")
    assert finding.names == ("embedding.weight", "head.weight")
    assert "what trains moves what is frozen" in finding.why
    assert "`head.weight = embedding.weight`" in finding.fix


def test_fk007_in_a_later_phase() -> None:
    """FK007: two objects on one tensor that part in a later phase are found before it."""
    model = tied_by_data()
    model["head"].requires_grad_(True)
    assert not diagnose(model)
    assert only(FreezePlan().freeze("head", at_epoch=2).apply(model)).code == "FK007"


def test_fk007_spares_neighbours() -> None:
    """Parameters side by side in one storage share nothing."""
    flat, model = torch.zeros(8), nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, False))
    model[0].weight = nn.Parameter(flat[:4].view(2, 2), requires_grad=False)
    model[1].weight = nn.Parameter(flat[4:].view(2, 2))
    assert not diagnose(model)
    wide = torch.zeros(2, 4)
    model[0].weight = nn.Parameter(wide[:, :2], requires_grad=False)
    model[1].weight = nn.Parameter(wide[:, 2:])
    assert not diagnose(model)


def test_fk008_nothing_trainable() -> None:
    """FK008: nothing trains, or there is nothing to train; a plan may allow it."""
    finding = only(nn.Linear(2, 2).requires_grad_(False))
    assert (finding.code, finding.severity) == ("FK008", "error")
    assert finding.what == "nothing is trainable: all 2 parameters are frozen"
    assert "backward raises" in finding.why
    assert "unfreeze" in finding.fix
    assert "no parameters" in only(nn.ReLU()).what
    assert not diagnose(FreezePlan(allow_all_frozen=True).freeze("**").apply(nn.Linear(2, 2)))


def test_fk009_unreached_by_backward() -> None:
    """FK009: after backward, a trainable parameter without a gradient."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        features = model.blocks[0](torch.randn(8, 4))
    assert not diagnose(model, optimizer)
    model.head(model.blocks[1](features)).sum().backward()
    finding = only(model, optimizer)
    assert (finding.code, finding.severity) == ("FK009", "warning")
    assert finding.names == tuple(
        f"blocks.0.{name}" for name, _ in model.blocks[0].named_parameters()
    )
    assert "no_grad()" in finding.why
    assert "take part in the loss" in finding.fix
    assert only(model).names == finding.names


def test_fk009_waits_for_a_backward_of_the_phase() -> None:
    """What a phase opened is judged once something else that it opened has a gradient."""
    model = Net()
    applied = GRADUAL.apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    train(model, optimizer)
    applied.advance(epoch=1)
    assert not diagnose(applied)
    assert not diagnose(model, optimizer)
    model.blocks[1][0].bias.grad = torch.zeros(4)
    finding = only(applied)
    assert (finding.code, len(finding.names)) == ("FK009", 3)


def test_fk009_spares_what_trains_in_turn() -> None:
    """Heads that take turns, and optimizers that clear their own part, are no fault."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    optimizer = torch.optim.Adam(model.parameters())
    for name in "ab":
        optimizer.zero_grad()
        model["c"](model[name](torch.ones(1, 2))).sum().backward()
        optimizer.step()
    assert not diagnose(model, optimizer)
    one, other = (torch.optim.SGD(model[n].parameters(), lr=0.1) for n in "ab")
    assert not diagnose(model["a"], one)
    pair = nn.ModuleList([model["a"], model["b"]])
    other.zero_grad()
    model["a"](torch.ones(1, 2)).sum().backward()
    assert not diagnose(pair, one, other)


def vit(*, reentrant: bool) -> nn.Module:
    """Returns a small ViT under gradient checkpointing."""
    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=8, image_size=8, patch_size=4)  # fmt: skip
    model = ViTForImageClassification(config)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    return model


NO_GRAD_INPUT = "ignore:None of the inputs have requires_grad=True:UserWarning"


@pytest.mark.filterwarnings(NO_GRAD_INPUT)
def test_fk010_reentrant_transformers() -> None:
    """FK010: the names found are those that really get no gradient."""
    model = vit(reentrant=True)
    applied = FreezePlan().freeze("vit.embeddings").apply(model)
    finding = only(applied)
    assert (finding.code, finding.severity) == ("FK010", "warning")
    assert "use_reentrant=True" in finding.why
    assert "use_reentrant=False" in finding.fix
    model.train()(torch.randn(2, 3, 8, 8)).logits.sum().backward()
    dry = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert set(finding.names) == dry
    assert len(dry) == 32


def test_fk010_needs_all_of_it() -> None:
    """No fault without reentrancy, with a trainable stem, or with a hook that helps."""
    frozen_stem = FreezePlan().freeze("vit.embeddings")
    assert not diagnose(frozen_stem.apply(vit(reentrant=False)))
    assert not diagnose(vit(reentrant=True))
    helped = vit(reentrant=True)
    helped.enable_input_require_grads()
    assert not diagnose(frozen_stem.apply(helped))
    head_only = FreezePlan().freeze("vit")
    assert not diagnose(head_only.apply(vit(reentrant=True)))


def test_fk010_in_a_later_phase() -> None:
    """FK010: blocks that are cut off only in a later phase are found before it."""
    applied = FreezePlan().freeze("vit.embeddings", at_epoch=1).apply(vit(reentrant=True))
    assert only(applied).code == "FK010"


@pytest.mark.filterwarnings(NO_GRAD_INPUT)
def test_fk010_checkpoint_wrapper() -> None:
    """FK010: torch's wrapper cuts too; behind an uncut block that trains the next one is fed."""
    model = Net()
    for number, block in enumerate(model.blocks):
        model.blocks[number] = checkpoint_wrapper(block, CheckpointImpl.REENTRANT)
    cut = only(model).names
    model.train()(torch.randn(8, 4)).sum().backward()
    assert set(cut) == {n.replace("_checkpoint_wrapped_module.", "")
                        for n, p in model.named_parameters() if p.grad is None}  # fmt: skip
    model(torch.randn(8, 4, requires_grad=True)).sum().backward()
    assert not diagnose(model)
    model = Net()
    model.blocks[1] = checkpoint_wrapper(model.blocks[1], CheckpointImpl.REENTRANT)
    assert not diagnose(model)
    assert len(only(FreezePlan().freeze("blocks.0").apply(model)).names) == 4
    model = Net()
    model.blocks[0] = checkpoint_wrapper(model.blocks[0], CheckpointImpl.NO_REENTRANT)
    assert not diagnose(model)


@pytest.mark.usefixtures("one_process")
def test_fk011_ddp_older_than_an_unfreeze() -> None:
    """FK011: what DDP was not built with, whether it trains already or will."""
    model = Net()
    applied = GRADUAL.apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    blocks = {name for name, _ in model.named_parameters() if name.startswith("blocks")}
    for epoch in range(3):
        applied.advance(epoch=epoch)
        finding = only(applied, ddp, optimizer)
        assert (finding.code, finding.severity) == ("FK011", "error")
        assert set(finding.names) == blocks
        assert "drift apart" in finding.why
        assert "find_unused_parameters=True" in finding.fix
        train(ddp, optimizer)
    applied.release()
    assert set(only(ddp).names) == blocks


@pytest.mark.usefixtures("one_process")
def test_fk011_spares_what_ddp_was_told_to_ignore() -> None:
    """Parameters that DDP ignores on purpose are no fault; nor are sparse ones it cannot tell."""
    model = Net()
    model.blocks.requires_grad_(False)
    ignored = [name for name, _ in model.named_parameters() if name.startswith("blocks")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    ddp = DistributedDataParallel(model)
    model.requires_grad_(True)
    assert not diagnose(ddp)
    sparse = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 2))
    sparse[1].requires_grad_(False)
    ddp = DistributedDataParallel(sparse)
    sparse[1].requires_grad_(True)
    assert not diagnose(ddp)
    whole = DistributedDataParallel(sparse)
    sparse[1].requires_grad_(False)
    assert only(whole).code == "FK016"


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, "find_unused_parameters=False"),
        ({"static_graph": True}, "static_graph=True"),
    ],
)
def test_fk016_ddp_waits_for_frozen(options: dict[str, bool], asked: str) -> None:
    """FK016: DDP built while all was trainable, without leave to find parameters unused."""
    model = Net()
    ddp = DistributedDataParallel(model, **options)
    applied = FreezePlan().freeze("blocks", at_epoch=1).apply(model)
    finding = only(applied, ddp)
    assert (finding.code, finding.severity) == ("FK016", "error")
    assert asked in finding.what
    assert "raises" in finding.why
    assert "find_unused_parameters=True" in finding.fix
    train(ddp)
    applied.advance(epoch=1)
    with pytest.raises(RuntimeError, match=r"finished reduction|graph has changed"):
        train_thrice(ddp)


COSINE: dict[str, Factory] = {
    "cosine": lambda o: CosineAnnealingLR(o, 10, eta_min=1e-6),
    "restarts": lambda o: CosineAnnealingWarmRestarts(o, 10, eta_min=1e-6),
    "sequential": lambda o: SequentialLR(
        o, [LinearLR(o), CosineAnnealingLR(o, 10, eta_min=1e-6)], milestones=[2]
    ),
    "chained": lambda o: ChainedScheduler(
        [CosineAnnealingLR(o, 10, eta_min=1e-6), ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("make", COSINE.values(), ids=COSINE)
def test_fk012_ratios_under_a_floor(make: Factory) -> None:
    """FK012: an `eta_min` above zero ends groups far apart at one lr; seen before training."""
    optimizer = groups(1e-5, 1e-3, 1e-3)
    finding = only(THREE, make(optimizer))
    assert (finding.code, finding.severity) == ("FK012", "warning")
    assert finding.names == ("low", "mid", "top")
    assert "(eta_min=1e-06) does not keep the ratios" in finding.what
    assert "'low' from 1e-05 to 1e-06, 'mid' from 0.001 to 1e-06" in finding.what
    assert "not a share of each group's learning rate" in finding.why
    assert "factor (LambdaLR)" in finding.fix


@pytest.mark.parametrize("low", [1e-5, 0.0])
def test_fk012_floor_takes_a_group_up(low: float) -> None:
    """FK012: an `eta_min` above a group's lr takes it up, and brings a zero to life."""
    optimizer = groups(low, 1e-2, 1e-2)
    scheduler = CosineAnnealingLR(optimizer, 10, eta_min=1e-4)
    finding = only(THREE, optimizer, scheduler)
    assert (finding.code, finding.severity, finding.names) == ("FK012", "error", ("low",))
    assert f"'low' from {low:g} to 0.0001" in finding.what
    assert "learns faster" in finding.why
    assert f"below the lowest learning rate, {low:g}" in finding.fix


def test_fk012_minimum_of_a_plateau() -> None:
    """FK012: one `min_lr` for all groups; a list in their ratio is no fault."""
    optimizer = groups(1e-5, 1e-3, 1e-3)
    assert (
        "ReduceLROnPlateau(min_lr=1e-06)"
        in only(THREE, ReduceLROnPlateau(optimizer, min_lr=1e-6)).what
    )
    assert not diagnose(THREE, ReduceLROnPlateau(optimizer, min_lr=[1e-7, 1e-5, 1e-5]))
    assert (
        "[1e-06, 1e-05, 1e-05]"
        in only(THREE, ReduceLROnPlateau(optimizer, min_lr=[1e-6, 1e-5, 1e-5])).what
    )


def test_fk012_averaging_lr() -> None:
    """FK012: SWALR takes all groups to one lr unless it is given one for each."""
    assert "SWALR(swa_lr=0.05)" in only(THREE, SWALR(groups(1e-5, 1e-3, 1e-3), 0.05)).what
    assert not diagnose(THREE, SWALR(groups(1e-5, 1e-3, 1e-3), [1e-4, 1e-2, 1e-2]))


RELATIVE: dict[str, Factory] = {
    "cosine": lambda o: CosineAnnealingLR(o, 10),
    "tiny_floor": lambda o: CosineAnnealingLR(o, 10, eta_min=1e-9),
    "restarts": lambda o: CosineAnnealingWarmRestarts(o, 10),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0),
    "polynomial": lambda o: PolynomialLR(o, 10),
    "exponential": lambda o: ExponentialLR(o, 0.5),
    "lambdas": lambda o: LambdaLR(
        o, [lambda step: 1.0, lambda step: 0.9**step, lambda step: 0.5**step]
    ),
    "one_cycle": lambda o: OneCycleLR(o, [1e-5, 1e-3, 1e-3], total_steps=12),
    "sequential": lambda o: SequentialLR(
        o, [LinearLR(o), CosineAnnealingLR(o, 10)], milestones=[2]
    ),
}


@pytest.mark.parametrize("make", RELATIVE.values(), ids=RELATIVE)
def test_fk012_spares_relative_schedules(make: Factory) -> None:
    """Schedules that keep ratios, or give each group its own, are no fault at any step."""
    optimizer = groups(1e-5, 1e-3, 1e-3)
    scheduler = make(optimizer)
    for _ in range(11):
        assert not diagnose(THREE, scheduler)
        optimizer.step()
        scheduler.step(*[1.0] * isinstance(scheduler, ReduceLROnPlateau))


def test_fk012_spares_one_lr() -> None:
    """Groups that start alike stay alike under any floor."""
    assert not diagnose(THREE, CosineAnnealingLR(groups(1e-3, 1e-3, 1e-3), 10, eta_min=1e-5))


def test_fk012_without_the_scheduler() -> None:
    """FK012: present learning rates betray a floor, and what leaves ratios alone is spared."""
    optimizer = groups(1e-5, 1e-3, 1e-3)
    scheduler = CosineAnnealingLR(optimizer, 10, eta_min=1e-6)
    assert not diagnose(THREE, optimizer)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    finding = only(THREE, optimizer)
    assert (finding.code, finding.severity) == ("FK012", "warning")
    assert finding.what.startswith("the ratios between groups are not the initial ones: 'mid' from")
    assert "eta_min" in finding.why
    assert "pass the scheduler" in finding.fix
    optimizer = groups(1e-5, 1e-3, 1e-3)
    scheduler = CosineAnnealingLR(optimizer, 10)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        assert not diagnose(THREE, optimizer)


@pytest.mark.parametrize("factors", [(1.0, 0.9, 0.5), (2.0, 1.0, 1.0)], ids=["mixed", "raised"])
def test_fk012_spares_what_no_floor_does(factors: tuple[float, ...]) -> None:
    """A floor leaves the lower of two groups the larger share; other differences are a wish."""
    optimizer = groups(1e-5, 1e-3, 1e-3)
    scheduler = LambdaLR(optimizer, [lambda step, each=each: each**step for each in factors])
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert not diagnose(THREE, optimizer)


def test_fk012_a_zero_that_lives() -> None:
    """FK012: a group that started at lr 0 and has another now."""
    optimizer = groups(0.0, 1e-3, 1e-3)
    scheduler = CosineAnnealingLR(optimizer, 10, eta_min=1e-6)
    optimizer.step()
    scheduler.step()
    assert only(THREE, optimizer).names == ("low",)


@pytest.mark.parametrize(
    "plan",
    [
        FreezePlan().group("head", lr_mult=10),
        FreezePlan().group("blocks", lr=1e-5).group("head", lr=1e-3),
        FreezePlan().group("blocks", lr=1e-5),
    ],
)
def test_fk012_one_max_lr_over_a_plan(plan: FreezePlan) -> None:
    """FK012: OneCycleLR with a single `max_lr` takes the place of the plan's learning rates."""
    applied = plan.apply(Net())
    optimizer = applied.optimizer(torch.optim.SGD, lr=1e-4, momentum=0.9)
    rates = [group["lr"] for group in optimizer.param_groups]
    OneCycleLR(optimizer, max_lr=rates, total_steps=10)
    assert not diagnose(applied)
    OneCycleLR(optimizer, max_lr=1e-2, total_steps=10)
    finding = only(applied)
    assert (finding.code, finding.severity) == ("FK012", "warning")
    assert finding.names == tuple(group["name"] for group in optimizer.param_groups)
    assert "a single number takes the place" in finding.why
    assert 'max_lr=[group["lr"] for group in optimizer.param_groups]' in finding.fix


def test_fk012_spares_a_plan_whose_learning_rates_agree() -> None:
    """An optimizer built by hand may have, as base, the very lr that the plan gives a part."""
    applied = FreezePlan().group("blocks", lr=1e-4).apply(Net())
    optimizer = torch.optim.AdamW(applied.param_groups(lr=1e-4))
    scheduler = ExponentialLR(optimizer, 0.9)
    assert not diagnose(applied, scheduler)


def test_fk012_spares_groups_that_never_train() -> None:
    """The learning rate of a group of frozen parameters is nobody's concern."""
    THREE["low"].requires_grad_(False)
    scheduler = CosineAnnealingLR(groups(1e-5, 1e-3, 1e-3), 10, eta_min=1e-6)
    finding = only(THREE, scheduler)
    THREE["low"].requires_grad_(True)
    assert finding.code == "FK002"


@pytest.mark.parametrize("wrap", [copy.deepcopy, AveragedModel])
def test_fk013_copies_still_held(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """FK013: a copy made under a plan keeps its holds; the fix in the text takes them away."""
    model = Net()
    applied = FreezePlan().freeze("blocks[0]").apply(model)
    assert not diagnose(model)
    held = wrap(model)
    finding = only(held)
    assert (finding.code, finding.severity) == ("FK013", "warning")
    assert finding.names == ("blocks.0", "blocks.0.0", "blocks.0.1", "blocks.0.2")
    assert "ignores train() in the copy" in finding.why
    fix = finding.fix.split(": ")[1]
    assert fix == "FreezePlan(allow_all_frozen=True).apply(copy).release()"
    eval(fix, {"FreezePlan": FreezePlan, "copy": held})
    assert not diagnose(held)
    assert all(module.training for module in held.train().modules())
    assert not diagnose(applied)
    applied.release()
    assert not diagnose(wrap(model))


class Deep(nn.Sequential):
    """Layers one after the other, in code that is not torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Passes through all."""
        for layer in self:
            x = layer(x)
        return x


class Scaled(nn.Linear):
    """A layer in code that is not torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a batch."""
        return 2 * super().forward(x)


def ten_phases(*widths: int, cls: type[nn.Sequential] = Deep) -> tuple[nn.Sequential, AppliedPlan]:
    """Returns ten layers, or so many, opened one by one from the top."""
    widths = widths or (2,) * 11
    deep = cls(*(Scaled(*pair) for pair in pairwise(widths)))
    top = len(deep) - 1
    plan = FreezePlan().freeze("**", f"![{top}]")
    for number in range(top):
        plan = plan.unfreeze(f"[{number}]", at_epoch=top - number)
    return deep, plan.apply(deep)


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
@pytest.mark.parametrize("in_place", [True, False])
def test_fk014_more_phases_than_compiled_for(in_place: bool) -> None:
    """FK014: what differs within the compiled module counts, from the present phase on."""
    deep, applied = ten_phases()
    assert not diagnose(applied)
    if in_place:
        deep.compile()
    helpers = () if in_place else (torch.compile(deep),)
    finding = only(applied, *helpers)
    assert (finding.code, finding.severity) == ("FK014", "warning")
    assert finding.names == ("the model",)
    assert "10 different phases, more than the 8" in finding.what
    assert "torch._dynamo.config.recompile_limit" in finding.why
    assert "torch._dynamo.reset()" in finding.fix
    applied.advance(epoch=2)
    assert not diagnose(applied, *helpers)


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
def test_fk014_counts_by_block() -> None:
    """Blocks that are compiled by themselves have few states each, however many phases."""
    deep, applied = ten_phases()
    for block in deep:
        block.compile()
    assert not diagnose(applied)


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
def test_fk014_counts_by_code() -> None:
    """Blocks of different shapes run the same code, and torch limits how often that is compiled."""
    deep, applied = ten_phases(2, 3, 4, 5, 6)
    for block in deep:
        block.compile()
    finding = only(applied)
    assert finding.names == ("0", "1", "2", "3")
    assert finding.what == (
        "4 modules: 0, 1, 2, 3 are compiled and go through 10 different states, more than the 8 "
        "that torch.compile compiles the code they share for"
    )
    applied.advance(epoch=1)
    assert not diagnose(applied)


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
def test_fk014_counts_what_is_compiled() -> None:
    """In place, a container of torch's own is not: what it calls is."""
    deep, applied = ten_phases(cls=nn.Sequential)
    deep.compile()
    assert not diagnose(applied)
    assert only(applied, torch.compile(deep)).names == ("the model",)


def test_fk015_flags_written_by_other_code() -> None:
    """FK015: `requires_grad` written behind the plan's back, either way."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    model.blocks[0][0].weight.requires_grad_(True)
    model.head.bias.requires_grad_(False)
    finding = only(applied)
    assert (finding.code, finding.severity) == ("FK015", "error")
    assert finding.names == ("blocks.0.0.weight", "head.bias")
    assert "other code wrote requires_grad" in finding.why
    assert "say in the plan" in finding.fix


def test_fk015_waits_with_the_plan() -> None:
    """What waits for the end of an accumulation window is still as the plan left it."""
    model = Net()
    applied = GRADUAL.apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    train(model)
    applied.advance(epoch=1)
    assert not model.blocks[1][0].weight.requires_grad
    assert not diagnose(applied)
    optimizer.step()
    assert model.blocks[1][0].weight.requires_grad
    assert not diagnose(applied)


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (FreezePlan().group("blocks[0]", warmup_steps=3), "warms up for blocks.0.0.weight"),
        (
            FreezePlan().group("head", lr=0.1).group("head", lr=0.2, at_epoch=1),
            "changes the lr, weight decay or options for head.weight",
        ),
        (FreezePlan().unfreeze("head.weight", rows="1:"), "keeps rows for head.weight"),
    ],
)
def test_fk017_not_attached(plan: FreezePlan, what: str) -> None:
    """FK017: what is done inside steps needs an attached optimizer."""
    model = Net()
    applied = plan.apply(model)
    optimizer = torch.optim.SGD(applied.param_groups(lr=0.1), lr=0.1)
    finding = only(applied, optimizer)
    assert (finding.code, finding.severity) == ("FK017", "error")
    assert finding.what == f"the plan {what}, and no attached optimizer holds it"
    assert "attach" in finding.fix
    applied.attach(optimizer)
    assert not diagnose(applied)


def test_healthy_plan_with_one_cycle() -> None:
    """A plan, AdamW and OneCycleLR: nothing before training, between and after steps."""
    model = Net()
    applied = FreezePlan().freeze("blocks").no_decay().apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=6)
    assert not diagnose(applied)
    for _ in range(5):
        train(model, optimizer)
        assert not diagnose(applied, optimizer, scheduler)
        scheduler.step()
        assert not diagnose(applied)


@pytest.mark.parametrize("to_none", [True, False])
def test_healthy_gradual_unfreezing(to_none: bool) -> None:
    """Nothing before and after every phase, with and without the scheduler, forth and back."""
    model = Net()
    applied = GRADUAL.apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    scheduler = CosineAnnealingLR(optimizer, 30)
    for epoch in (0, 1, 2, 3, 4, 1, 0, 3):
        assert not diagnose(applied)
        applied.advance(epoch=epoch)
        assert not diagnose(applied, scheduler)
        for _ in range(2):
            model.train()
            optimizer.zero_grad(set_to_none=to_none)
            model(torch.randn(8, 4)).square().mean().backward()
            assert not diagnose(applied)
            optimizer.step()
            assert not diagnose(applied, optimizer)
            scheduler.step()


def test_healthy_several_optimizers() -> None:
    """Two optimizers built from patterns of a plan, at every point of a step."""
    model = Net()
    applied = GRADUAL.apply(model)
    lower = torch.optim.SGD(applied.param_groups("blocks", lr=0.1), lr=0.1)
    upper = torch.optim.Adam(applied.param_groups("head", lr=1e-3))
    assert not diagnose(applied, lower, upper)
    applied.attach(lower, upper)
    for epoch in range(4):
        applied.advance(epoch=epoch)
        train(model, lower, upper)
        assert not diagnose(applied, upper)
        upper.zero_grad()
        assert not diagnose(applied)


def bert() -> tuple[nn.Module, dict[str, Any], FreezePlan]:
    """Returns a small sentence encoder, whose pooler takes no part, and a plan for it."""
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=8)  # fmt: skip
    plan = FreezePlan().freeze("**").unfreeze("encoder.layer[-1]").unfreeze(
        "encoder.layer[1]", lr_mult=0.5, at_epoch=1
    )  # fmt: skip
    return BertModel(config), {"input_ids": torch.arange(8).view(2, 4)}, plan


def classifier() -> tuple[nn.Module, dict[str, Any], FreezePlan]:
    """Returns a small BERT classifier and a plan that opens it from the top."""
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=8)  # fmt: skip
    plan = FreezePlan().freeze("bert").unfreeze("bert.pooler", "bert.encoder", at_epoch=1)
    return BertForSequenceClassification(config), {"input_ids": torch.arange(8).view(2, 4)}, plan


def gpt2() -> tuple[nn.Module, dict[str, Any], FreezePlan]:
    """Returns a small GPT-2, its head tied to the embedding, and a plan that opens all of it."""
    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    plan = FreezePlan().freeze("transformer").unfreeze("transformer.h", at_epoch=0).unfreeze(
        "transformer.wte", at_epoch=1
    )  # fmt: skip
    return GPT2LMHeadModel(config), {"input_ids": torch.arange(8).view(2, 4)}, plan


@pytest.mark.parametrize("build", [bert, classifier, gpt2])
def test_healthy_transformers(
    build: Callable[[], tuple[nn.Module, dict[str, Any], FreezePlan]],
) -> None:
    """Real models, tied weights among them, with a plan and without."""
    model, batch, plan = build()
    assert not diagnose(model)
    assert not diagnose(model, torch.optim.AdamW(model.parameters()))
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-3)
    for epoch in range(2):
        applied.advance(epoch=epoch)
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch)[0].square().mean().backward()
            assert not diagnose(applied, CosineAnnealingLR(optimizer, 10))
            assert not diagnose(model, optimizer)
            optimizer.step()
        assert not diagnose(applied)


@pytest.mark.usefixtures("one_process")
def test_healthy_ddp() -> None:
    """DDP built while all was trainable and told that parameters may be unused; or static."""
    model = Net()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    applied = GRADUAL.apply(ddp)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    for epoch in range(4):
        applied.advance(epoch=epoch)
        train(ddp, optimizer)
        assert not diagnose(applied, ddp)
        assert not diagnose(ddp, optimizer)
    static = {"static_graph": True}
    for first, options in (("plan", {}), ("plan", static), ("ddp", static)):
        model = Net()
        if first == "ddp":
            ddp = DistributedDataParallel(model, **options)
        applied = FreezePlan().freeze("blocks").apply(model)
        if first == "plan":
            ddp = DistributedDataParallel(model, **options)
        optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
        for _ in range(3):
            train(ddp, optimizer)
            assert not diagnose(applied, ddp)


def test_healthy_odds_and_ends() -> None:
    """Lazy, meta and parametrized parameters, rows and metric-driven plans give nothing."""
    lazy = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
    assert not diagnose(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1))
    assert only(
        lazy,
        torch.optim.SGD([*lazy[1].parameters(), nn.parameter.UninitializedParameter()], lr=0.1),
    )
    with torch.device("meta"):
        assert not diagnose(Net())
    normed = parametrizations.weight_norm(nn.Linear(2, 2))
    assert parametrize.is_parametrized(normed)
    assert not diagnose(normed, torch.optim.SGD(normed.parameters(), lr=0.1))
    stall = {"monitor": "loss", "mode": "min", "patience": 1, "min_delta": 0.0}
    plan = FreezePlan().freeze("blocks").unfreeze("blocks[1]", at_metric=stall)
    plan = plan.unfreeze("head.weight", rows="1:")
    applied = plan.apply(model := Net())
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    for epoch in range(4):
        applied.advance(epoch=epoch, metrics={"loss": 1.0})
        train(model, optimizer)
        assert not diagnose(applied)
    assert model.blocks[1][0].weight.requires_grad


def test_reads_only() -> None:
    """Nothing is written: no flag, gradient, mode, buffer, state or random number."""
    model = Net()
    applied = GRADUAL.apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    train(model, optimizer)
    model.blocks[0][0].weight.requires_grad_(True)

    def state() -> list[Any]:
        return [
            [(n, p.requires_grad, p._version, p.grad is None) for n, p in model.named_parameters()],
            [(module.training, sorted(vars(module))) for module in model.modules()],
            [buffer._version for buffer in model.buffers()],
            [(id(p), sorted(held)) for p, held in optimizer.state.items()],
            [[*map(id, group["params"])] for group in optimizer.param_groups],
            torch.get_rng_state().tolist(),
        ]

    before = state()
    assert diagnose(applied, optimizer)
    assert state() == before


def test_what_it_does_not_take() -> None:
    """What is neither a model nor a handle, optimizer, scheduler or wrapper is quoted."""
    model = Net()
    with pytest.raises(FreezekitError, match=r"a model or what apply returned, got 'net'$"):
        diagnose("net")  # type: ignore[arg-type]
    with pytest.raises(FreezekitError, match=r"got <ResolvedPlan.*>; apply the plan first$"):
        diagnose(GRADUAL.resolve(model))  # type: ignore[arg-type]
    with pytest.raises(FreezekitError, match=r"optimizers, LR schedulers and wrappers .* got 3$"):
        diagnose(model, 3)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FreezekitError, match=r"(?s)got \[SGD .*; pass each by itself$"):
        diagnose(model, [optimizer])  # type: ignore[arg-type]
    with pytest.raises(FreezekitError, match=r"the DataParallel given beside .* does not wrap it"):
        diagnose(model, nn.DataParallel(Net()))
    applied = GRADUAL.apply(model)
    applied.release()
    with pytest.raises(FreezekitError, match="was released; pass the model itself"):
        diagnose(applied)
