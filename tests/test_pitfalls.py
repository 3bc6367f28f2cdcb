"""Known ways in which freezing by hand goes wrong, each impossible or refused through freezekit.

The numbers are those of the project's list of pitfalls.
"""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler, swa_utils

from freezekit import (
    AppliedPlan,
    FreezekitError,
    FreezePlan,
    FrozenChangedError,
    PatternError,
    PlanError,
    diagnose,
)

COMPILE_IMPORTS = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
ONE_PROCESS = "ignore:FSDP is switching to use `NO_SHARD`:UserWarning"


class Net(nn.Module):
    """A backbone under a head."""

    def __init__(self, *backbone: nn.Module, width: int = 4) -> None:
        """Puts the given layers in the backbone."""
        super().__init__()
        self.backbone = nn.Sequential(*backbone)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns two features of what the backbone makes of `x`."""
        out = self.backbone(x)
        return self.head(out.mean(tuple(range(2, out.dim()))) if out.dim() > 2 else out)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    shape: tuple[int, ...] = (8, 4),
    steps: int = 3,
    to_none: bool = True,
) -> None:
    """Trains on random batches, with `model.train()` before every step."""
    for _ in range(steps):
        model.train()
        optimizer.zero_grad(set_to_none=to_none)
        model(torch.randn(shape)).square().mean().backward()
        optimizer.step()


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of every parameter and buffer, those not in the state dict included."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names of the tensors that are not bit-identical to a copy."""
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


class StochasticDepth(nn.Module):
    """Drops whole samples in train mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x` with half of its rows zeroed."""
        return x * (torch.rand(len(x), 1) < 0.5) if self.training else x


class FunctionalDropout(nn.Module):
    """Calls the function instead of holding a module."""

    def __init__(self) -> None:
        """Holds a layer."""
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `linear(x)` with dropout in train mode."""
        return nn.functional.dropout(self.linear(x), 0.5, self.training)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "1d_bare": (lambda: nn.BatchNorm1d(4, affine=False), (8, 4)),
    "1d_cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (8, 4)),
    "2d": (lambda: nn.BatchNorm2d(4), (8, 4, 3, 3)),
    "2d_bare": (lambda: nn.BatchNorm2d(4, affine=False), (8, 4, 3, 3)),
    "3d": (lambda: nn.BatchNorm3d(4), (8, 4, 2, 2, 2)),
    "sync": (lambda: nn.SyncBatchNorm(4), (8, 4, 3)),
    "sync_bare": (lambda: nn.SyncBatchNorm(4, affine=False), (8, 4, 3)),
    "instance": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (8, 4, 3, 3)),
    "instance_affine": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (8, 4, 3, 3),
    ),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("nested", [False, True], ids=["direct", "nested"])
def test_pitfall_02_frozen_batchnorm_keeps_its_statistics(norm: str, nested: bool) -> None:
    """A frozen norm of any kind keeps its buffers and normalises with them."""
    build, shape = NORMS[norm]
    layer = build()
    model = Net(nn.Sequential(layer) if nested else layer)
    for buffer in (layer.running_mean, layer.running_var):
        buffer.copy_(torch.rand(4) + 0.5)
    x = torch.randn(shape)
    expected = model.eval().backbone(x)
    before = values(model)
    applied = FreezePlan().freeze("backbone").apply(model.train())
    train(model, applied.optimizer(torch.optim.SGD, lr=0.1), shape=shape)
    assert moved(model, before) == {"head.weight", "head.bias"}
    assert torch.equal(model.backbone(x), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_pitfall_02_frozen_batchnorm_without_statistics_is_left_working(affine: bool) -> None:
    """A norm that keeps no statistics has nothing to hold, and its output does not change."""
    model = Net(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=affine, track_running_stats=False))
    x = torch.randn(8, 4)
    expected = model.backbone(x)
    before = values(model)
    applied = FreezePlan().freeze("backbone").apply(model)
    train(model, applied.optimizer(torch.optim.SGD, lr=0.1))
    assert moved(model, before) == {"head.weight", "head.bias"}
    assert torch.equal(model.backbone(x), expected)


def test_pitfall_02_batchnorm_that_trains_again_takes_statistics_again() -> None:
    """A norm unfrozen by the plan follows its batches from then on."""
    model = Net(nn.BatchNorm1d(4))
    applied = FreezePlan().freeze("backbone", until_epoch=1).apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    train(model, optimizer)
    assert model.backbone[0].num_batches_tracked == 0
    applied.advance(epoch=1)
    train(model, optimizer)
    assert model.backbone[0].num_batches_tracked == 3


@pytest.mark.parametrize(
    "switch",
    [
        lambda model: model.train(),
        lambda model: model.backbone.train(),
        lambda model: model.backbone[1].train(),
        lambda model: model.backbone[2].train(True),
        lambda model: [module.train() for module in model.modules()],
        lambda model: model.eval().train(),
    ],
    ids=["root", "backbone", "norm", "dropout", "each", "back_and_forth"],
)
def test_pitfall_03_train_does_not_undo_the_hold(switch: Callable[[Net], object]) -> None:
    """Whoever calls `train()`, what is frozen stays in eval and what trains is in train mode."""
    model = Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    FreezePlan().freeze("backbone").apply(model)
    switch(model)
    modes = {name: module.training for name, module in model.named_modules()}
    frozen = {name for name in modes if name.startswith("backbone")}
    assert modes == {name: name not in frozen for name in modes}


@pytest.mark.parametrize("to_none", [True, False], ids=["to_none", "to_zero"])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"weight_decay": 0.1}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"weight_decay": 0.5}),
    ],
    ids=["momentum", "decay", "adam", "adamw"],
)
def test_pitfall_06_stale_gradients_do_not_move_what_was_frozen(
    cls: type[torch.optim.Optimizer], options: dict[str, float], to_none: bool
) -> None:
    """Parameters frozen after training, between backward and step, no longer move."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", at_epoch=1).apply(model)
    optimizer = applied.optimizer(cls, lr=0.1, **options)
    train(model, optimizer, to_none=to_none)
    model(torch.randn(8, 4)).sum().backward()
    before = values(model)
    applied.advance(epoch=1)
    optimizer.step()
    train(model, optimizer, to_none=to_none)
    assert moved(model, before) == {"head.weight", "head.bias"}


def test_pitfall_06_stale_gradients_are_dropped_by_apply_too() -> None:
    """A gradient left from before the plan is gone from what the plan freezes, and only there."""
    model = Net(nn.Linear(4, 4))
    model(torch.randn(8, 4)).sum().backward()
    FreezePlan().freeze("backbone").apply(model)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "head.weight",
        "head.bias",
    ]


def test_pitfall_32_clipping_does_not_count_stale_gradients() -> None:
    """The gradient norm after freezing is that of what trains."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", at_step=1).apply(model)
    model(torch.randn(8, 4)).sum().backward()
    live = torch.nn.utils.get_total_norm([p.grad for p in model.head.parameters()])
    applied.advance(step=1)
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9) == live


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small_net() -> Net:
    """Returns a network with a norm and parameters to freeze around it."""
    return Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Dropout()))


def inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Returns a function that wraps the backbone and its last layer instead of the model."""

    def wrapped(model: nn.Module) -> nn.Module:
        model.backbone[2] = wrap(model.backbone[2])
        model.backbone = wrap(model.backbone)
        return model

    return wrapped


def shard(model: nn.Module) -> nn.Module:
    """Returns the model sharded in place over one process."""
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.backbone, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp1(module: nn.Module) -> nn.Module:
    """Returns the module wrapped in the first generation of sharding."""
    return FullyShardedDataParallel(module, use_orig_params=True, device_id=torch.device("cpu"))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "ddp": nn.parallel.DistributedDataParallel,
    "data_parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled_inside": inside(lambda module: torch.compile(module, backend="eager")),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "checkpointed": checkpoint_wrapper,
    "checkpointed_inside": inside(checkpoint_wrapper),
    "compiled_ddp": lambda model: torch.compile(
        nn.parallel.DistributedDataParallel(model), backend="eager"
    ),
    "fsdp1": fsdp1,
    "fsdp1_inside": inside(fsdp1),
    "fsdp2": shard,
}


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
@pytest.mark.filterwarnings(ONE_PROCESS)
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_pitfall_12_one_plan_selects_the_same_under_every_wrapper(wrapper: str) -> None:
    """Names are those of the bare model, and what they freeze is what they name."""
    plan = FreezePlan().freeze("backbone", "!backbone[2][0].bias").no_decay("backbone.{0,2}")
    expected = plan.resolve(small_net())
    model = WRAPPERS[wrapper](small_net())
    resolved = plan.resolve(model)
    assert [row.name for row in resolved.rows] == [row.name for row in expected.rows]
    assert [row.decisions for row in resolved.rows] == [row.decisions for row in expected.rows]
    assert resolved.at().frozen == {
        "backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias",
        "backbone.2.0.weight",
    }  # fmt: skip
    plan.apply(model)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 3
    model.train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm1d))


def test_pitfall_12_a_pattern_that_matches_nothing_is_refused() -> None:
    """A name from another model, or with a wrapper's prefix, is an error and not a no-op."""
    for pattern in ("encoder", "module.backbone", "_orig_mod.backbone", "backbone.0.gamma"):
        with pytest.raises(PatternError, match="selects nothing"):
            FreezePlan().freeze(pattern).apply(Net(nn.Linear(4, 4)))


def test_pitfall_12_text_that_looks_like_a_wrapper_is_left_alone() -> None:
    """Only torch's wrapper classes are stripped, never a user's module called `module`."""
    model = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": nn.Linear(2, 2)})})
    resolved = FreezePlan().freeze("module._orig_mod.weight").resolve(model)
    assert resolved.at().frozen == {"module._orig_mod.weight"}


class Tied(nn.Module):
    """An embedding whose weight the output layer shares."""

    def __init__(self) -> None:
        """Ties the two."""
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(4, 2)


class Siamese(nn.Module):
    """Two towers that are one module."""

    def __init__(self) -> None:
        """Shares the tower."""
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
        self.right = self.left
        self.head = nn.Linear(4, 2)


def test_pitfall_15_a_tied_tensor_is_frozen_under_either_name() -> None:
    """One name of a tied tensor is enough, and the other is never said to train."""
    for pattern in ("embed", "out", "out.weight"):
        resolved = FreezePlan().freeze(pattern).resolve(Tied())
        assert resolved.at().frozen == {"embed.weight"}
        assert resolved.rows[0].aliases == ("out.weight",)


def test_pitfall_15_saying_two_things_of_a_tied_tensor_is_refused() -> None:
    """Unfreezing one name of a frozen tensor names both and offers the way out."""
    model = Tied()
    with pytest.raises(PlanError) as caught:
        FreezePlan().freeze("**").unfreeze("out").apply(model)
    for part in ("'embed.weight'", "'out.weight'", "freeze('**')", "unfreeze('out')", "untie"):
        assert part in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pitfall_15_the_remedy_for_a_tied_tensor_works() -> None:
    """Naming both names, or the canonical one, in the later rule is accepted."""
    for names in (("out", "embed"), ("embed",)):
        resolved = FreezePlan().freeze("**").unfreeze(*names).resolve(Tied())
        assert resolved.at().trainable == {"embed.weight"}


def test_pitfall_15_a_tied_tensor_is_in_one_group() -> None:
    """Optimizers get the tensor once, whichever names the plan uses."""
    applied = FreezePlan().group("out", lr=0.5).apply(Tied())
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    names = [name for group in applied.param_groups(lr=0.1) for name, _ in group["params"]]
    assert sorted(names) == ["embed.weight", "head.bias", "head.weight"]
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "embed.weight": 0.5,
        "head": 0.1,
    }


def test_pitfall_15_a_shared_module_is_frozen_and_held_under_either_name() -> None:
    """Both towers of a siamese network are frozen by one of them."""
    for pattern in ("left", "right", "right[0]"):
        model = Siamese()
        applied = FreezePlan().freeze(pattern).apply(model)
        model.train()
        assert applied.phase.frozen == {"left.0.weight", "left.0.bias"}
        assert not model.right.training
        assert not model.right[1].training


def test_pitfall_15_a_shared_parametrized_module_is_spelled_under_either_name() -> None:
    """`weight` of a parametrized module works under the second name of a shared one too."""
    model = Siamese()
    model.left[0] = parametrizations.weight_norm(model.left[0])
    rows = {f"left.0.parametrizations.weight.original{i}" for i in range(2)}
    for pattern in ("left.0.weight", "right.0.weight", r"re:right\.0\.weight"):
        assert FreezePlan().freeze(pattern).resolve(model).at().frozen == rows


DROPOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()), (8, 4)),
    "dropout1d": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout1d()), (8, 4)),
    "dropout2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout2d()), (8, 4, 3, 3)),
    "dropout3d": (lambda: nn.Sequential(nn.Conv3d(4, 4, 1), nn.Dropout3d()), (8, 4, 2, 2, 2)),
    "alpha": (lambda: nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout()), (8, 4)),
    "feature_alpha": (lambda: nn.Sequential(nn.Linear(4, 4), nn.FeatureAlphaDropout()), (8, 4)),
    "rrelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU()), (8, 4)),
    "nested": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout())), (8, 4)),
    "functional": (FunctionalDropout, (8, 4)),
    "stochastic_depth": (lambda: nn.Sequential(nn.Linear(4, 4), StochasticDepth()), (8, 4)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True),
        (8, 3, 4),
    ),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_pitfall_16_dropout_is_off_in_what_is_frozen(kind: str) -> None:
    """A frozen block answers the same twice, in train mode of the model, with gradients on."""
    build, shape = DROPOUTS[kind]
    model = nn.ModuleDict({"block": build(), "head": nn.Linear(4, 2)})
    FreezePlan().freeze("block").apply(model)
    model.train()
    x = torch.randn(shape, requires_grad=True)
    assert torch.equal(model["block"](x), model["block"](x))
    assert torch.equal(model["block"](x), model.eval()["block"](x))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_pitfall_16_dropout_stays_on_where_only_part_is_frozen(kind: str) -> None:
    """Freezing biases only, as BitFit's opposite, leaves every dropout as it was."""
    build, shape = DROPOUTS[kind]
    model = nn.ModuleDict({"block": build(), "head": nn.Linear(4, 2)})
    FreezePlan().freeze("block.**.bias").apply(model)
    model.train()
    x = torch.randn(shape)
    assert not torch.equal(model["block"](x), model["block"](x))


class Quantized(nn.Module):
    """An integer weight with a scale that can train."""

    def __init__(self) -> None:
        """Starts from ones."""
        super().__init__()
        ones = torch.ones(4, 4, dtype=torch.int8)
        self.weight = nn.Parameter(ones, requires_grad=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x` through the weight."""
        return x @ self.weight.to(x.dtype) * self.scale


def test_pitfall_26_integer_parameters_stay_frozen_with_a_warning() -> None:
    """Unfreezing everything leaves integers alone, says so, and trains the rest."""
    model = Net(Quantized(), nn.Linear(4, 4))
    plan = FreezePlan().freeze("**").unfreeze("**")
    applied = plan.apply(model)
    assert applied.phase.frozen == {"backbone.0.weight"}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "backbone.0.weight"
    ]
    (warning,) = (text for text in applied.resolved.warnings if "cannot train" in text)
    assert warning == (
        "rule 2, unfreeze('**'): what is torch.int8 cannot train and stays frozen: 1 parameter: "
        "backbone.0.weight"
    )
    train(model, applied.optimizer(torch.optim.AdamW, lr=0.1))
    applied.release()
    assert not model.backbone[0].weight.requires_grad


def test_pitfall_26_an_integer_parameter_named_outright_is_refused() -> None:
    """Asking for exactly the tensor that cannot train is an error, and nothing was written."""
    model = Net(Quantized())
    plan = FreezePlan().freeze("head").unfreeze("backbone.0.weight")
    with pytest.raises(PlanError) as caught:
        plan.apply(model)
    assert str(caught.value) == (
        "rule 2, unfreeze('backbone.0.weight'): 'backbone.0.weight' is torch.int8 and cannot "
        "train; only floating-point and complex tensors can"
    )
    assert model.head.weight.requires_grad


def test_pitfall_26_a_frozen_quantized_module_is_held() -> None:
    """Integers do not keep a module whose other parameters are frozen out of eval."""
    model = Net(Quantized())
    FreezePlan().freeze("backbone").apply(model)
    assert not model.train().backbone[0].training


@pytest.mark.parametrize("pattern", ["backbone.0.weight", "**.weight", "backbone[0]", "**@Linear"])
def test_pitfall_27_parametrized_weights_answer_to_their_name(pattern: str) -> None:
    """`weight` selects the tensors it is made of, which keep their real names."""
    model = Net(parametrizations.weight_norm(nn.Linear(4, 4)))
    resolved = FreezePlan().freeze(pattern, "!head").resolve(model)
    made_of = {f"backbone.0.parametrizations.weight.original{i}" for i in range(2)}
    assert made_of <= resolved.at().frozen <= made_of | {"backbone.0.bias"}


@pytest.mark.parametrize("name", ["backbone.0.weight", "backbone.0.parametrizations.weight"])
def test_pitfall_27_what_a_parametrized_weight_is_made_of_is_said(name: str) -> None:
    """Asking about `weight` names the rows to ask about instead."""
    resolved = FreezePlan().resolve(Net(parametrizations.spectral_norm(nn.Linear(4, 4))))
    with pytest.raises(PlanError, match=r"backbone\.0\.parametrizations\.weight\.original"):
        resolved.explain(name)


@pytest.mark.parametrize(
    "norm",
    [parametrizations.spectral_norm, torch.nn.utils.spectral_norm],
    ids=["parametrization", "hook"],
)
def test_pitfall_27_frozen_spectral_norm_keeps_its_vectors(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    """The power iteration of a frozen layer stands still, so its weight does too."""
    model = Net(norm(nn.Linear(4, 4)))
    before = values(model)
    applied = FreezePlan().freeze("backbone").apply(model)
    x = torch.randn(8, 4)
    expected = model.backbone(x)
    train(model, applied.optimizer(torch.optim.SGD, lr=0.1))
    assert moved(model, before) == {"head.weight", "head.bias"}
    assert torch.equal(model.backbone(x), expected)


class Rooted(nn.Module):
    """Parameters on the root and in lists, as vision transformers have them."""

    def __init__(self) -> None:
        """Has a token, positions, lists of tensors and a layer."""
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(3, 4))
        self.prompts = nn.ParameterList([torch.zeros(4), torch.zeros(4)])
        self.named = nn.ParameterDict({"scale": torch.ones(4)})
        self.layer = nn.Linear(4, 4)


def test_pitfall_28_parameters_on_the_root_are_seen() -> None:
    """`**` reaches every parameter, and each is selected by its own name."""
    model = Rooted()
    everything = {name for name, _ in model.named_parameters()}
    assert FreezePlan().freeze("**").resolve(model).at().frozen == everything
    for pattern, expected in {
        "cls_token": {"cls_token"},
        "*_*": {"cls_token", "pos_embed"},
        "prompts[1]": {"prompts.1"},
        "prompts": {"prompts.0", "prompts.1"},
        "named.scale": {"named.scale"},
        "@Rooted": None,
        "**@Rooted": {"cls_token", "pos_embed"},
    }.items():
        if expected is None:
            with pytest.raises(PatternError, match="'@' needs a name before it"):
                FreezePlan().freeze(pattern)
        else:
            assert FreezePlan().freeze(pattern).resolve(model).at().frozen == expected


def test_pitfall_28_what_no_rule_mentions_is_reported() -> None:
    """The parameters that a list of modules forgets are in the coverage report."""
    resolved = FreezePlan().freeze("layer", "prompts", "named").resolve(Rooted())
    assert resolved.unmentioned == ("cls_token", "pos_embed")


@pytest.mark.parametrize("kdim", [None, 3], ids=["packed", "separate"])
def test_pitfall_29_attention_is_frozen_with_its_own_weights(kdim: int | None) -> None:
    """The path of an attention module covers the weights it holds itself."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, kdim=kdim, vdim=kdim)})
    model["head"] = nn.Linear(4, 2)
    expected = {f"attention.{name}" for name, _ in model["attention"].named_parameters()}
    own = {name for name in expected if "out_proj" not in name}
    assert FreezePlan().freeze("attention").resolve(model).at().frozen == expected
    assert FreezePlan().freeze("**@MultiheadAttention").resolve(model).at().frozen == own
    assert FreezePlan().freeze("**@Linear", "!head").resolve(model).at().frozen == expected - own


def test_pitfall_29_a_slice_of_packed_weights_is_refused_by_name() -> None:
    """A projection that is not a tensor of its own is an error that lists what is there."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    with pytest.raises(PatternError, match="in_proj_weight"):
        FreezePlan().freeze("attention.q_proj_weight").apply(model)


class SavedCopy(nn.Module):
    """A head kept beside the copy of it that trains, as adapters wrap it."""

    def __init__(self, head: nn.Module) -> None:
        """Copies the head."""
        super().__init__()
        self.original_module = head
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 2)})


def test_pitfall_30_a_duplicated_head_is_visible_and_can_be_left_frozen() -> None:
    """The dead copy has a name of its own, and a name from before the wrap is refused."""
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "classifier": SavedCopy(nn.Linear(4, 2))})
    plan = FreezePlan().freeze("**").unfreeze("classifier", "!classifier.original_module")
    assert plan.resolve(model).at().trainable == {
        "classifier.modules_to_save.default.weight",
        "classifier.modules_to_save.default.bias",
    }
    with pytest.raises(PatternError, match="modules_to_save"):
        FreezePlan().unfreeze("classifier.weight").apply(model)


def test_pitfall_34_replaced_parameters_are_found_again() -> None:
    """After `load_state_dict(assign=True)` the plan opens the parameters the model now has."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_epoch=1).apply(model)
    old = model.backbone[0].weight
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    new = model.backbone[0].weight
    assert new is not old
    applied.advance(epoch=1)
    assert (new.requires_grad, old.requires_grad) == (True, False)
    tensors = dict(pair for group in applied.param_groups(lr=0.1) for pair in group["params"])
    assert tensors["backbone.0.weight"] is new
    applied.advance(epoch=0)
    assert not new.requires_grad
    applied.release()
    assert new.requires_grad


def test_pitfall_34_a_parameter_that_is_gone_is_an_error() -> None:
    """Removing what the plan governs is noticed at the next transition, before it writes."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("**", "!head", until_epoch=1).apply(model)
    del model.backbone[0].bias
    with pytest.raises(FreezekitError, match=r"'backbone\.0\.bias' is gone from the model"):
        applied.advance(epoch=1)
    assert not model.backbone[0].weight.requires_grad


def test_pitfall_35_parameters_made_in_inference_mode_are_refused() -> None:
    """Torch cannot train them, so the plan says so before it writes."""
    model = Net(nn.Linear(4, 4))
    with torch.inference_mode():
        model.backbone.append(nn.Linear(4, 4))
    with pytest.raises(FreezekitError) as caught:
        FreezePlan().freeze("backbone", until_epoch=1).apply(model)
    assert str(caught.value) == (
        "'backbone.1.weight' is an inference tensor, so torch cannot change whether it trains; "
        "rebuild it as a torch.nn.Parameter outside torch.inference_mode()"
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pitfall_38_a_plan_that_freezes_everything_is_refused() -> None:
    """Nothing to train is an error at `apply`, naming the phase and the way out."""
    model = Net(nn.Linear(4, 4))
    with pytest.raises(PlanError) as caught:
        FreezePlan().freeze("backbone").freeze("head", at_epoch=2, until_epoch=5).apply(model)
    assert "epochs 2 to 4" in str(caught.value)
    assert "FreezePlan(allow_all_frozen=True)" in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
    FreezePlan(allow_all_frozen=True).freeze("**").apply(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_pitfall_38_what_comes_after_the_end_of_training_may_be_all_frozen() -> None:
    """A rule that closes exactly at the end leaves no training in which nothing trains."""
    plan = FreezePlan().freeze("**").unfreeze("head", until_fraction=1.0)
    applied = plan.apply(Net(nn.Linear(4, 4)), total_steps=10)
    applied.advance(step=9)
    assert applied.phase.trainable == {"head.weight", "head.bias"}


def test_pitfall_39_lazy_parameters_freeze_and_survive_materialisation() -> None:
    """A lazy module is frozen before its first forward pass and stays so after it."""
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
    applied = FreezePlan().freeze("[0]").apply(model)
    assert applied.resolved.rows[0].shape is None
    model(torch.randn(8, 3))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "1.weight",
        "1.bias",
    ]
    before = values(model)
    train(model, applied.optimizer(torch.optim.AdamW, lr=0.1), shape=(8, 3))
    assert moved(model, before) == {"1.weight", "1.bias"}
    applied.release()
    assert model[0].weight.requires_grad


def test_pitfall_39_what_needs_the_shape_of_a_lazy_parameter_says_so() -> None:
    """A rule by rank names the tensor and what to do first."""
    with pytest.raises(PlanError, match=r"no_decay needs the rank of '0\.weight', which is lazy"):
        FreezePlan().no_decay().apply(nn.Sequential(nn.LazyLinear(4)))


class Recurrent(nn.Module):
    """An embedding, a recurrent layer and a head."""

    def __init__(self) -> None:
        """Has two recurrent layers with dropout between them."""
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns two features for each sequence of tokens."""
        return self.head(self.rnn(self.embed(x))[0][:, -1])


def test_pitfall_41_a_frozen_rnn_behind_trainable_layers_keeps_train_mode() -> None:
    """It has no dropout then, answers the same twice, and gets its dropout back."""
    model = Recurrent()
    applied = FreezePlan().freeze("rnn").apply(model)
    tokens = torch.randint(7, (3, 5))
    model.train()
    assert (model.rnn.training, model.rnn.dropout) == (True, 0.0)
    assert torch.equal(model(tokens), model(tokens))
    model.eval().train()
    assert (model.rnn.training, model.rnn.dropout) == (True, 0.0)
    applied.release()
    assert (model.rnn.training, model.rnn.dropout) == (True, 0.5)


def test_pitfall_41_a_frozen_rnn_with_nothing_trainable_before_it_is_held() -> None:
    """Nothing flows back through it, so eval does, and its dropout stays as written."""
    model = Recurrent()
    FreezePlan().freeze("embed", "rnn").apply(model)
    tokens = torch.randint(7, (3, 5))
    model.train()
    assert (model.rnn.training, model.rnn.dropout) == (False, 0.5)
    assert torch.equal(model(tokens), model(tokens))


def test_pitfall_41_a_layer_of_an_rnn_is_selected_by_its_suffix() -> None:
    """`rnn.*_l0` freezes one layer of a stack whose weights share a module."""
    resolved = FreezePlan().freeze("rnn.*_l0").resolve(Recurrent())
    assert resolved.at().frozen == {
        f"rnn.{kind}_{way}_l0" for kind in ("weight", "bias") for way in ("ih", "hh")
    }


def sgd(applied: AppliedPlan, **options: float) -> torch.optim.SGD:
    """Returns an attached optimizer at a rate of 0.1."""
    return applied.optimizer(torch.optim.SGD, lr=0.1, **options)


def rates_in(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Returns a list that takes up the rates of the groups in each step from now on."""
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda each, *_: seen.append([group["lr"] for group in each.param_groups])
    )
    return seen


def test_pitfall_01_what_opens_later_is_in_the_optimizer_from_the_start() -> None:
    """It does not move before, moves after, and its gradient is cleared like any other."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_step=3).apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1)
    before = values(model)
    train(model, optimizer)
    assert moved(model, before) == {"head.weight", "head.bias"}
    applied.advance(step=3)
    train(model, optimizer)
    assert moved(model, before) == set(before)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pitfall_01_an_optimizer_that_was_filtered_is_found_out() -> None:
    """What opens later and is in no optimizer is named, with the phase still to come."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_step=3).apply(model)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(live, lr=0.1)
    found = [each for each in diagnose(applied, optimizer) if each.code == "FK001"]
    assert len(found) == 1
    assert "backbone.0.weight" in str(found[0])


LINEAR = [1.0 - 0.1 * at for at in range(10)]

ADDED_GROUPS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda at: LINEAR[at]] * 2),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda at: 0.5] * 2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.2, 0.1], total_steps=9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.02, 0.01], [0.2, 0.1], 3),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.02, 0.01], 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, patience=0, min_lr=[0.02, 0.01]
    ),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=6),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 12),
}


@pytest.mark.parametrize("kind", ADDED_GROUPS)
def test_pitfall_07_what_opens_mid_run_does_not_break_the_scheduler(kind: str) -> None:
    """Schedulers that raise or go wrong over a group added later have theirs from the start."""
    model = Net(nn.Linear(4, 4))
    plan = FreezePlan().freeze("backbone", until_step=4).group("backbone", lr_mult=2.0)
    applied = plan.apply(model)
    optimizer = sgd(applied, momentum=0.9)
    scheduler = ADDED_GROUPS[kind](optimizer)
    plain = torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate}
         for part, rate in ((model.backbone, 0.2), (model.head, 0.1))], lr=0.1, momentum=0.9,
    )  # fmt: skip
    reference = ADDED_GROUPS[kind](plain)
    seen, expected = rates_in(optimizer), []
    for step in range(8):
        applied.advance(step=step)
        train(model, optimizer, steps=1)
        expected.append([group["lr"] for group in plain.param_groups])
        plain.step()
        for each in (scheduler, reference):
            each.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
    assert seen == expected
    assert [low / high for low, high in seen] == [pytest.approx(2.0)] * 8


def test_pitfall_08_what_opens_late_has_the_rate_that_the_plan_says() -> None:
    """The schedule has gone on meanwhile; a factor and a warm-up from the opening are the plan's.

    Here five times the rate that has decayed to a fifth, over a warm-up of two steps.
    """
    model = Net(nn.Linear(4, 4))
    plan = FreezePlan().freeze("backbone", until_step=8)
    plan = plan.group("backbone", lr_mult=5.0, warmup_steps=2)
    applied = plan.apply(model)
    optimizer = sgd(applied)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda at: LINEAR[min(at, 9)])
    told = []
    for step in range(10):
        applied.advance(step=step)
        told.append(applied.lrs()["backbone.0"])
        train(model, optimizer, steps=1)
        scheduler.step()
    assert told == [0.0] * 8 + [pytest.approx(0.5 * 0.2 / 2), pytest.approx(0.5 * 0.1)]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def twins() -> nn.ModuleDict:
    """Returns two layers of equal shape."""
    return nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})


def train_twins(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Trains both, on batches that depend on the step and with gradients of their own."""
    for step in steps:
        optimizer.zero_grad()
        batch = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
        loss = model["first"](batch).square().sum() + 3 * model["second"](batch).square().sum()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("loaded", range(4))
@pytest.mark.parametrize("saved", range(4))
def test_pitfall_09_optimizer_state_survives_a_change_of_phase(saved: int, loaded: int) -> None:
    """Saved in one phase and loaded in any other, each layer gets its own state back."""
    plan = FreezePlan().freeze("first", until_step=1).freeze("second", at_step=2, until_step=3)
    states = []
    for begin in (0, loaded):
        model = twins()
        applied = plan.apply(model)
        optimizer = applied.optimizer(torch.optim.Adam, lr=0.1)
        applied.advance(step=begin)
        if states:
            optimizer.load_state_dict(states[0])
        else:
            for step in range(saved + 1):
                applied.advance(step=step)
                train_twins(model, optimizer, range(step, step + 1))
            states.append(optimizer.state_dict())
            expected = named_state(model, optimizer)
    assert named_state(model, optimizer) == expected
    assert len(expected) == (2 if saved == 0 else 4)


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """Returns the first moments by parameter name."""
    return {
        name: optimizer.state[parameter]["exp_avg"].flatten().tolist()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def test_pitfall_09_layers_of_equal_shape_do_not_swap_their_state() -> None:
    """Groups that come in another order than the saved ones take what is theirs, by name."""
    model = twins()
    applied = FreezePlan().group("first", lr_mult=0.5).apply(model)
    optimizer = applied.optimizer(torch.optim.Adam, lr=0.1)
    train_twins(model, optimizer, range(3))
    other = torch.optim.Adam(applied.param_groups(lr=0.1)[::-1], lr=0.1)
    applied.release()
    again = FreezePlan().group("first", lr_mult=0.5).apply(model)
    again.attach(other)
    other.load_state_dict(optimizer.state_dict())
    assert named_state(model, other) == named_state(model, optimizer)


def test_pitfall_10_a_resumed_run_is_in_the_phase_it_was_in() -> None:
    """What opened before the checkpoint is open after it, without the event happening again."""
    plan = FreezePlan().freeze("first", until_epoch=1).freeze("second", at_epoch=3)
    model = twins()
    applied = plan.apply(model)
    applied.advance(epoch=2)
    state = applied.state_dict()
    for load in (True, False):
        fresh = twins()
        resumed = plan.apply(fresh)
        assert not fresh["first"].weight.requires_grad
        if load:
            resumed.load_state_dict(state)
        else:
            resumed.advance(epoch=2)
        assert all(parameter.requires_grad for parameter in fresh.parameters())
        resumed.advance(epoch=3)
        assert [fresh[name].weight.requires_grad for name in fresh] == [True, False]


def test_pitfall_17_parameters_of_equal_value_are_told_apart() -> None:
    """Norms are all ones and zeros at first; each is in a group, once, by identity."""
    model = Net(nn.LayerNorm(4), nn.LayerNorm(4), nn.BatchNorm1d(4))
    applied = FreezePlan().freeze("backbone", until_step=1).apply(model)
    optimizer = sgd(applied)
    held = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    applied.advance(step=1)
    before = values(model)
    train(model, optimizer)
    assert moved(model, before) == set(before)


@pytest.mark.parametrize(("on_freeze", "velocity"), [("keep", 1.9), ("drop", 0.0)])
def test_pitfall_24_old_momentum_moves_what_opens_again_only_if_kept(
    on_freeze: Literal["keep", "drop"], velocity: float
) -> None:
    """Frozen in between, with a gradient of zero after: what moves is the momentum from before."""
    model = nn.ModuleDict({"part": nn.Linear(1, 1, bias=False), "rest": nn.Linear(1, 1)})
    plan = FreezePlan().freeze("part", at_step=2, until_step=5)
    applied = plan.apply(model, on_freeze=on_freeze)
    optimizer = sgd(applied, momentum=0.9)
    weight = model["part"].weight
    seen = [weight.item()]
    for step in range(7):
        applied.advance(step=step)
        optimizer.zero_grad()
        rest = model["rest"](torch.ones(1)).sum()
        (weight.sum() * (1.0 if step < 2 else 0.0) + rest).backward()
        optimizer.step()
        seen.append(weight.item())
    steps = [before - after for before, after in pairwise(seen)]
    expected = [0.1, 0.19, 0, 0, 0, 0.1 * 0.9 * velocity, 0.1 * 0.81 * velocity]
    assert steps == pytest.approx(expected, abs=1e-6)


def test_pitfall_24_a_warm_up_tames_the_first_steps_of_fresh_moments() -> None:
    """Adam's first step is its rate whatever the gradient; here it is a quarter of it."""
    model = Net(nn.Linear(4, 4, bias=False))
    plan = FreezePlan().freeze("backbone", until_step=2).group("backbone", warmup_steps=4)
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.Adam, lr=0.1)
    weight = model.backbone[0].weight
    for step, most in enumerate([0.0, 0.0, 0.025]):
        applied.advance(step=step)
        before = weight.detach().clone()
        train(model, optimizer, steps=1)
        assert (weight - before).abs().max().item() == pytest.approx(most, rel=1e-3)


def test_pitfall_25_a_checkpoint_has_the_state_of_what_is_frozen(tmp_path: Path) -> None:
    """Saved in a phase in which a trained layer is frozen, with torch's own functions."""
    plan = FreezePlan().freeze("first", at_step=2)
    model = twins()
    applied = plan.apply(model)
    optimizer = applied.optimizer(torch.optim.Adam, lr=0.1)
    train_twins(model, optimizer, range(2))
    applied.advance(step=2)
    expected = named_state(model, optimizer)
    assert len(expected) == 4
    torch.save({"optimizer": optimizer.state_dict(), "plan": applied.state_dict()}, tmp_path / "c")
    saved = torch.load(tmp_path / "c", weights_only=True)
    fresh = twins()
    resumed = plan.apply(fresh)
    other = resumed.optimizer(torch.optim.Adam, lr=0.1)
    resumed.load_state_dict(saved["plan"])
    other.load_state_dict(saved["optimizer"])
    assert named_state(fresh, other) == expected


@pytest.mark.parametrize(
    ("cls", "options", "first_step"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.5}, 0),
        (torch.optim.Adam, {}, 3),
        (torch.optim.SGD, {"weight_decay": 0.5, "momentum": 0.9}, 3),
    ],
    ids=["decay", "history", "both"],
)
def test_pitfall_31_frozen_rows_of_an_embedding_do_not_move(
    cls: type[torch.optim.Optimizer], options: dict[str, float], first_step: int
) -> None:
    """Neither decay nor moments from before move a row that does not train."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 2))
    plan = FreezePlan().unfreeze("[0].weight", rows="4:", at_step=first_step)
    applied = plan.apply(model)
    optimizer = applied.optimizer(cls, lr=0.1, **options)
    for step in range(first_step + 3):
        if step == first_step:
            before = model[0].weight.detach().clone()
        applied.advance(step=step)
        optimizer.zero_grad()
        model(torch.arange(6)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight[:4], before[:4])
    assert not (model[0].weight[4:] == before[4:]).any()


def test_pitfall_33_what_closes_within_an_accumulation_window_moves_no_more() -> None:
    """Frozen after two of four passes: the gradient of those two is not stepped."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", at_step=1).apply(model)
    optimizer = sgd(applied, momentum=0.9, weight_decay=0.1)
    before = values(model)
    for number in range(4):
        if number == 2:
            applied.advance(step=1)
        model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    assert moved(model, before) == {"head.weight", "head.bias"}


def test_pitfall_33_what_opens_within_an_accumulation_window_waits_for_a_whole_one() -> None:
    """Opened after two of four passes: no step is taken with half of the gradient."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_step=1).apply(model)
    optimizer = sgd(applied, momentum=0.9, weight_decay=0.1)
    before = values(model)
    for number in range(4):
        if number == 2:
            applied.advance(step=1)
        model(torch.randn(8, 4)).square().mean().backward()
        assert model.backbone[0].weight.grad is None
    optimizer.step()
    assert moved(model, before) == {"head.weight", "head.bias"}
    train(model, optimizer, steps=1)
    assert moved(model, before) == set(before)


def test_pitfall_37_a_scaler_steps_only_optimizers_that_have_something_to_do() -> None:
    """An optimizer all of whose rates are 0 now has no gradients; its step is left out."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_step=1).apply(model)
    optimizers = {
        part: applied.optimizer(torch.optim.SGD, part, lr=0.1) for part in ("backbone", "head")
    }
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    stepped = []
    for step in range(2):
        applied.advance(step=step)
        scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
        rates = applied.lrs()
        for part, optimizer in optimizers.items():
            if any(rates[group["name"]] for group in optimizer.param_groups):
                scaler.step(optimizer)
                stepped.append((step, part))
        scaler.update()
        model.zero_grad()
    assert stepped == [(0, "head"), (1, "backbone"), (1, "head")]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_pitfall_40_a_frozen_encoder_answers_as_in_eval_mode() -> None:
    """Also where torch's fast path zeroes what is padded; what is not differs by rounding only."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    model = nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 2), "head": nn.Linear(4, 2)})
    x, padded = torch.randn(2, 3, 4), torch.tensor([[False] * 3, [False, True, True]])
    by_hand = copy.deepcopy(model["encoder"]).requires_grad_(False).eval()
    expected = by_hand(x, src_key_padding_mask=padded)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = by_hand(x, src_key_padding_mask=padded)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    FreezePlan().freeze("encoder").apply(model.train())
    output = model.train()["encoder"](x, src_key_padding_mask=padded)
    assert torch.equal(output, expected)
    assert torch.allclose(output[~padded], slow[~padded], atol=1e-5)


class DecaysAll(torch.optim.SGD):
    """Applies its decay to every parameter, gradient or not, as some do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Shrinks all parameters, then steps."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)
        super().step(closure)


def test_pitfall_42_optimizers_that_step_what_has_no_gradient() -> None:
    """LBFGS is refused; one that nobody knows is found out by the guard, by name."""
    model = Net(nn.Linear(4, 4))
    applied = FreezePlan().freeze("backbone", until_step=1).apply(model)
    with pytest.raises(FreezekitError, match="steps frozen parameters too"):
        applied.attach(torch.optim.LBFGS(model.parameters()))
    optimizer = applied.optimizer(DecaysAll, lr=0.1)
    with pytest.raises(FrozenChangedError) as caught, applied.guard():
        train(model, optimizer)
    assert caught.value.names == ("backbone.0.weight", "backbone.0.bias")


def test_pitfall_43_layer_decay_counts_all_layers_and_sets_real_rates() -> None:
    """Frozen layers count; each parameter is in one group, with and without decay apart."""
    layers = [nn.Linear(4, 4) for _ in range(4)]
    model = nn.Sequential(*layers)
    plan = FreezePlan().freeze("[:2]").layer_decay(decay=0.5).no_decay()
    groups = plan.apply(model).param_groups(lr=0.8, weight_decay=0.1)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in groups
        for name, _ in group["params"]
    }
    assert found == {
        "2.weight": (0.4, 0.1), "2.bias": (0.4, 0.0), "3.weight": (0.8, 0.1), "3.bias": (0.8, 0.0),
    }  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(found)
    ever = (
        FreezePlan()
        .freeze("[:2]", until_epoch=1)
        .layer_decay(decay=0.5)
        .apply(nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]))
    )
    rates = {n: g["lr"] for g in ever.param_groups(lr=0.8) for n, _ in g["params"]}
    assert [rates[f"{layer}.weight"] for layer in range(4)] == [0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize("averaged", ["deepcopy", "AveragedModel"])
def test_pitfall_46_averaged_copies_follow_and_can_take_the_plan(averaged: str) -> None:
    """What is frozen is exact in the copy; the copy's modes are its own, and so is its plan."""
    model = Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    plan = FreezePlan().freeze("backbone", until_step=3)
    applied = plan.apply(model)
    if averaged == "deepcopy":
        copied: nn.Module = copy.deepcopy(model)
        inner = copied
    else:
        copied = swa_utils.AveragedModel(
            model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        inner = copied.module
    optimizer = sgd(applied)
    for step in range(5):
        applied.advance(step=step)
        train(model, optimizer, steps=1)
        if averaged == "AveragedModel":
            copied.update_parameters(model)
        if step == 2:
            pairs = zip(inner.backbone.parameters(), model.backbone.parameters(), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    copied.train()
    assert [module.training for module in inner.backbone] == [False] * 3
    assert [module.training for module in model.backbone] == [True] * 3
    other = plan.apply(copied)
    other.advance(step=3)
    copied.train()
    assert all(module.training for module in inner.backbone)
    assert all(parameter.requires_grad for parameter in inner.parameters())
    other.release()
    assert all(parameter.requires_grad for parameter in model.parameters())
