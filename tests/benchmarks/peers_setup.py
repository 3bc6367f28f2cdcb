"""timm and plain torch beside a plan: freezing, opening, groups with layer decay, and steps."""

import copy
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from torch import nn

from freezekit import AppliedPlan, FreezePlan

from .peers_timing import Show, Work, in_turn

RATE, DECAY, LAYER_DECAY = 1e-3, 0.05, 0.75
STEPS, PAIRS = 10, 2
MANY, FEW = 15, 5
WITHOUT_DECAY = ("cls_token", "pos_embed")


class Case(NamedTuple):
    """A model, what is frozen of it in timm's words and in a plan's, and rounds to measure."""

    model: nn.Module
    frozen: list[str]
    pattern: list[str]
    layer: Callable[[str], int]
    layers: int
    rounds: int


class Tree(nn.Module):
    """50 blocks of 20 experts: 20,002 parameters, and the layers that timm asks a model for."""

    def __init__(self, blocks: int = 50, experts: int = 20) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            nn.ModuleDict({"expert": nn.ModuleList(self._expert() for _ in range(experts))})
            for _ in range(blocks)
        )
        self.head = nn.Linear(1, 1)

    @staticmethod
    def _expert() -> nn.Module:
        parts = ("query", "key", "value", "output", "gate", "up", "down", "first", "second")
        return nn.ModuleDict({**{n: nn.Linear(1, 1) for n in parts}, "norm": nn.LayerNorm(1)})

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the layers as models of timm do."""
        return {"stem": r"^stem", "blocks": [(r"^layer\.(\d+)", None)]}


def _layer_of_vit(name: str) -> int:
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    return {"norm": 12, "head": 13}.get(name.split(".")[0], 0)


def _layer_of_tree(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("layer.") else 50


def vit() -> nn.Module:
    """Returns timm's smallest ViT, for small pictures."""
    torch.manual_seed(0)
    return import_module("timm").create_model("vit_tiny_patch16_224", img_size=64)


def cases() -> dict[str, Case]:
    """Returns a ViT with 152 parameters, of which ten blocks are frozen, and the tree."""
    blocks = [f"blocks.{number}" for number in range(10)]
    layers = [f"layer.{number}" for number in range(40)]
    return {
        "ViT": Case(vit(), ["patch_embed", *blocks], ["patch_embed", "blocks[:10]"],
                    _layer_of_vit, 14, MANY),
        "tree": Case(Tree(), layers, ["layer[:40]"], _layer_of_tree, 51, FEW),
    }  # fmt: skip


def decaying() -> FreezePlan:
    """Returns the plan of the groups that timm makes for layer decay."""
    plan = FreezePlan(layers={"final_norm": "last_block"}).layer_decay(decay=LAYER_DECAY)
    return plan.no_decay().group(*WITHOUT_DECAY, weight_decay=0.0, missing_ok=True)


def groups_by_hand(case: Case) -> list[dict[str, Any]]:
    """Returns the same groups as a script makes them for the one model."""
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in case.model.named_parameters():
        plain = parameter.ndim <= 1 or name in WITHOUT_DECAY
        layer, decay = case.layer(name), 0.0 if plain else DECAY
        rate = RATE * LAYER_DECAY ** (case.layers - 1 - layer)
        group = groups.setdefault((layer, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return [*groups.values()]


def _set(case: Case, *, trainable: bool) -> None:
    for name in case.frozen:
        case.model.get_submodule(name).requires_grad_(trainable)


def freezing(case: Case, show: Show) -> dict[str, float]:
    """Returns what freezing takes, once and for good, and opening again what is frozen."""
    utils = import_module("timm.utils")
    freeze, unfreeze = (partial(each, case.model, case.frozen)
                        for each in (utils.freeze, utils.unfreeze))  # fmt: skip
    plan = FreezePlan().freeze(*case.pattern, until_epoch=1)
    handles: list[Any] = []

    def works() -> dict[str, Work]:
        return {
            "timm": Work(freeze, unfreeze),
            "hand": Work(partial(_set, case, trainable=False), partial(_set, case, trainable=True)),
            "plan": Work(lambda: handles.append(plan.apply(case.model)),
                         lambda: handles.pop().release()),
        }  # fmt: skip

    once = in_turn(works(), case.rounds, show)
    other = case._replace(model=copy.deepcopy(case.model))
    freeze()
    applied = plan.apply(other.model)
    again = in_turn(
        {
            "timm": Work(unfreeze, freeze),
            "plan": Work(partial(applied.advance, epoch=1), partial(applied.advance, epoch=0)),
        },
        case.rounds,
        show,
    )
    applied.release()
    unfreeze()
    return {
        "freeze / timm": once.ratio("plan", "timm"),
        "freeze / hand": once.ratio("plan", "hand"),
        "open / timm": again.ratio("plan", "timm"),
    }


def grouping(case: Case, show: Show) -> dict[str, float]:
    """Returns what groups with layer decay take, and an optimizer over them."""
    optim, model, plan = import_module("timm.optim"), case.model, decaying()
    handles: list[Any] = []

    def ours(*, whole: bool) -> Any:  # noqa: ANN401
        handles.append(plan.apply(model))
        if whole:
            return handles[-1].optimizer(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
        return handles[-1].param_groups(lr=RATE, weight_decay=DECAY)

    def theirs() -> Any:  # noqa: ANN401
        return optim.param_groups_layer_decay(model, DECAY, WITHOUT_DECAY, layer_decay=LAYER_DECAY)

    def release() -> None:
        handles.pop().release()

    same = _by_name(model, ours(whole=False))
    release()
    assert _by_name(model, groups_by_hand(case)) == _by_name(model, theirs()) == same
    found = in_turn(
        {
            "timm": Work(theirs),
            "hand": Work(partial(groups_by_hand, case)),
            "plan": Work(partial(ours, whole=False), release),
            "timm's optimizer": Work(partial(_theirs, model)),
            "plan's optimizer": Work(partial(ours, whole=True), release),
        },
        case.rounds,
        show,
    )
    return {
        "groups / timm": found.ratio("plan", "timm"),
        "groups / hand": found.ratio("plan", "hand"),
        "optimizer / timm": found.ratio("plan's optimizer", "timm's optimizer"),
    }


def _theirs(model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    """Returns timm's optimizer, at the rates that a scheduler of timm gives its groups."""
    made = import_module("timm.optim").create_optimizer_v2(
        model, "adamw", lr=RATE, weight_decay=DECAY, layer_decay=LAYER_DECAY, fused=fused or None
    )
    for group in made.param_groups:
        group["lr"] = RATE * group["lr_scale"]
    return made


def _by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Returns the rate, to nine digits, and the weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        rate = group["lr"] if "lr" in group else RATE * group["lr_scale"]
        for each in group["params"]:
            parameter = each[1] if isinstance(each, tuple) else each
            found[names[id(parameter)]] = (float(f"{rate:.9g}"), group["weight_decay"])
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    torch.manual_seed(1)
    pictures, labels = torch.randn(2, 3, 64, 64), torch.randint(1000, (2,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures), labels).backward()
        optimizer.step()

    return step


def _applied(
    plan: FreezePlan, model: nn.Module, *, fused: bool
) -> tuple[AppliedPlan, Callable[[], None]]:
    applied = plan.apply(model)
    options = {"lr": RATE, "weight_decay": DECAY, "fused": fused or None}
    return applied, _step(model, applied.optimizer(torch.optim.AdamW, **options))


def _by_hand(model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """Returns an optimizer over the last two blocks and what follows, with the rest frozen."""
    frozen = [model.patch_embed, model.pos_drop, model.blocks[:10]]
    for each in (*frozen, model.cls_token, model.pos_embed):
        each.requires_grad_(False)
    for each in frozen:
        each.eval()
    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=fused or None)


FROZEN = FreezePlan().freeze("patch_embed", "blocks[:10]", "cls_token", "pos_embed")


def step(peer: str, show: Show, *, fused: bool) -> float:
    """Returns how long a step takes under a plan beside one with the groups of timm, or by hand.

    Where tensors lie in memory makes 2 %, so each of the models is once the one and once the other.
    Both must end at the same weights.
    """
    ratios = []
    for _ in range(PAIRS):
        one, other = vit(), vit()
        for ours, its in ((one, other), (other, one)):
            plan = decaying() if peer == "timm" else FROZEN
            optimizer = (_theirs if peer == "timm" else _by_hand)(its, fused=fused)
            applied, ours_step = _applied(plan, ours, fused=fused)
            works = {"plan": Work(ours_step), "peer": Work(_step(its, optimizer))}
            ratios.append(in_turn(works, STEPS, show, collects=False).ratio("plan", "peer"))
            for one_by_plan, same in zip(ours.parameters(), its.parameters(), strict=True):
                torch.testing.assert_close(one_by_plan, same)
            applied.release()
            for model in (one, other):
                model.requires_grad_(True).train().zero_grad()
    return geometric_mean(ratios)


def units() -> int:
    """Returns how many rounds a measurement has."""
    return 4 * PAIRS * 2 * (STEPS + 1) + 3 * (MANY + 1 + FEW + 1)


def measured(show: Show) -> dict[str, float]:
    """Returns all ratios."""
    found = {}
    for peer in ("timm", "hand"):
        for fused in (False, True):
            found[f"step / {peer}{', fused' * fused}"] = step(peer, show, fused=fused)
    for name, case in cases().items():
        ratios = freezing(case, show) | grouping(case, show)
        found |= {f"{name}: {what}": value for what, value in ratios.items()}
    return found
