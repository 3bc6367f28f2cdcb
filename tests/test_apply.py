"""Carrying a plan out: what is held and how, the handle, what is refused, and real models."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import trace
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from freezekit import FreezekitError, FreezePlan, PatternError, PlanError

COMPILE_IMPORTS = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"


class Net(nn.Module):
    """A backbone with a list of blocks, which never runs a forward of its own, and a head."""

    def __init__(self) -> None:
        """Has norms and dropout in every block."""
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()) for _ in range(2)
        )
        self.dropout = nn.Dropout()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns two features."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x))


def in_eval(model: nn.Module) -> set[str]:
    """Returns the paths of the modules in eval mode."""
    return {path for path, module in model.named_modules() if not module.training}


def frozen(model: nn.Module) -> set[str]:
    """Returns the names of the parameters that do not require gradients."""
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def below(model: nn.Module, *paths: str) -> set[str]:
    """Returns the paths of some modules and of all modules below them."""
    return {
        path for path, _ in model.named_modules()
        if any(not top or path == top or path.startswith(f"{top}.") for top in paths)
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", ["", "blocks", "blocks.0", "blocks.0.0", "blocks.0.1", "blocks.0.2"]
)
def test_the_hold_answers_whichever_module_is_switched(path: str) -> None:
    """Entering at any module, up and down, leaves what is held in eval and returns the module."""
    model = Net()
    FreezePlan().freeze("blocks").apply(model)
    module = model.get_submodule(path)
    for mode in (True, False, True):
        assert module.train(mode) is module
        assert below(model, "blocks") <= in_eval(model)
    assert model.train() is model
    assert in_eval(model) == below(model, "blocks")
    assert model.blocks.eval() is model.blocks


def test_the_hold_follows_the_phases() -> None:
    """What opens takes its parent's mode, what closes is held again, from either mode."""
    model = Net()
    applied = FreezePlan().freeze("blocks[0]").freeze("blocks[1]", at_epoch=1).apply(model)
    assert in_eval(model) == below(model, "blocks.0")
    applied.advance(epoch=1)
    assert in_eval(model) == below(model, "blocks")
    applied.advance(epoch=0)
    assert in_eval(model) == below(model, "blocks.0")
    model.eval()
    applied.advance(epoch=1)
    applied.advance(epoch=0)
    assert in_eval(model) == below(model, "")
    model.train()
    assert in_eval(model) == below(model, "blocks.0")


def test_only_whole_subtrees_are_held() -> None:
    """A block with one trainable tensor keeps its mode, and so do all above it."""
    model = Net()
    FreezePlan().freeze("blocks").unfreeze("blocks.0.0.bias").apply(model)
    model.train()
    assert in_eval(model) == {"blocks.0.1", *below(model, "blocks.1")}


def test_a_module_frozen_by_hand_alone_is_not_held() -> None:
    """A plan holds what its rules freeze, and what was frozen before only together with that."""
    model = Net()
    model.blocks[0].requires_grad_(False)
    with FreezePlan().freeze("head.bias").apply(model):
        assert in_eval(model.train()) == set()
    with FreezePlan().freeze("blocks[0][0].bias").apply(model):
        assert in_eval(model.train()) == {"blocks.0", "blocks.0.0", "blocks.0.1", "blocks.0.2"}
    with FreezePlan().freeze("blocks[1]").apply(model):
        assert in_eval(model.train()) == below(model, "blocks")


def test_frozen_mode_train_leaves_modes_alone() -> None:
    """The parameters are frozen, and the modules keep their mode and their own way."""
    model = Net()
    model.blocks[1].eval()
    applied = FreezePlan().freeze("blocks", frozen_mode="train").apply(model)
    assert in_eval(model) == below(model, "blocks.1")
    model.train()
    assert in_eval(model) == set()
    assert applied.phase.frozen == frozen(model) != set()
    applied.release()
    plan = FreezePlan().freeze("blocks").group("blocks[0][1]", frozen_mode="train")
    plan.apply(model)
    model.train()
    assert in_eval(model) == {"blocks.0.0", *below(model, "blocks.1")}


def test_an_affine_free_norm_goes_by_the_last_rule_on_its_path() -> None:
    """Without parameters of its own a norm is held, or not, by what the rules say of it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout())
    with FreezePlan().freeze("[1]").apply(model):
        assert in_eval(model.train()) == {"1"}
    plan = FreezePlan(allow_all_frozen=True).freeze("**").unfreeze("[1]")
    with plan.apply(model):
        assert in_eval(model.train()) == {"0"}


@pytest.mark.parametrize("pattern", ["re:body.*", "body.*.{weight,bias}", "body[0].*"])
def test_buffers_that_no_rule_mentions_do_not_keep_their_parent_from_being_held(
    pattern: str,
) -> None:
    """All parameters of a block are frozen by a rule, so the block is held with all in it."""
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout())
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    FreezePlan().freeze(pattern).apply(model)
    assert in_eval(model.train()) == below(model, "body")


class TwoTowers(nn.Module):
    """Two towers that share one stateless module, or one norm without parameters."""

    def __init__(self, shared: nn.Module) -> None:
        """Puts the shared module at the end of both."""
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 4), shared)
        self.right = nn.Sequential(nn.Linear(4, 4), shared)


@pytest.mark.parametrize("tower", ["left", "right"])
@pytest.mark.parametrize("kind", ["dropout", "norm"])
def test_a_module_shared_by_a_frozen_and_a_live_parent_has_one_mode(tower: str, kind: str) -> None:
    """`model.train()` brings no module into another mode than `apply` left it in."""
    shared = nn.Dropout() if kind == "dropout" else nn.BatchNorm1d(4, affine=False)
    model = TwoTowers(shared)
    FreezePlan().freeze(tower).apply(model)
    modes = in_eval(model)
    model.train()
    assert in_eval(model) == modes
    model.eval().train()
    assert in_eval(model) == modes


class OwnTrain(nn.Module):
    """Overrides `train`, as residual networks with frozen norms do."""

    def __init__(self) -> None:
        """Has a norm that stays in eval, and a dropout that does not."""
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout()
        self.linear = nn.Linear(4, 4)
        self.switched = 0

    def train(self, mode: bool = True) -> "OwnTrain":
        """Counts, and puts the norm in eval."""
        super().train(mode)
        self.switched += 1
        self.norm.eval()
        return self


def test_a_train_method_of_the_users_own_still_runs() -> None:
    """It is asked to switch the held module off, and gets its own way after release."""
    model = nn.ModuleDict({"block": OwnTrain(), "head": nn.Linear(4, 2)})
    applied = FreezePlan().freeze("block").apply(model)
    before = model["block"].switched
    model.train()
    assert model["block"].switched == before + 1
    assert in_eval(model) == below(model, "block")
    applied.release()
    assert in_eval(model.train()) == {"block.norm"}


def test_release_restores_modes_below_a_train_method_of_the_users_own() -> None:
    """Nobody switched in between, so each module has the mode it had, by whoever set it."""
    model = nn.ModuleDict({"block": OwnTrain(), "head": nn.Linear(4, 2)})
    model["block"].dropout.eval()
    before = in_eval(model)
    FreezePlan().freeze("block").apply(model).release()
    assert in_eval(model) == before


def test_a_train_method_on_the_instance_comes_back() -> None:
    """Some models replace `train` by a function that does nothing; release puts it back."""

    def stay(mode: bool = True) -> nn.Module:
        return model.blocks

    model = Net()
    model.blocks.eval()
    model.blocks.train = stay
    before = trace(model)
    FreezePlan().freeze("blocks").apply(model).release()
    assert trace(model) == before
    applied = FreezePlan().freeze("blocks").apply(model)
    model.train()
    assert in_eval(model) == below(model, "blocks")
    applied.release()
    assert vars(model.blocks)["train"] is stay


def pickled(model: nn.Module) -> nn.Module:
    """Returns the model after a trip through `torch.save`."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_held_on_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Copies keep flags and modes, and neither acts on the other."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    other = copied(model)
    other.train()
    assert in_eval(other) == below(other, "blocks")
    assert frozen(other) == frozen(model)
    applied.release()
    model.train()
    assert in_eval(model) == set()
    assert in_eval(other.train()) == below(other, "blocks")


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_can_take_a_plan_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    """It starts from the baseline of the original and is released to it, without a trace."""
    model = Net()
    model.head.bias.requires_grad = False
    untouched = trace(model)
    FreezePlan().freeze("blocks").apply(model)
    other = copied(model)
    assert FreezePlan().resolve(other).at().frozen == {"head.bias"}
    applied = FreezePlan().freeze("head").apply(other)
    assert frozen(other) == {"head.weight", "head.bias"}
    assert in_eval(other.train()) == {"head"}
    assert in_eval(model.train()) == below(model, "blocks")
    applied.release()
    assert {**trace(other), "objects": None} == {**untouched, "objects": None}


def test_a_copied_part_of_an_applied_model_can_take_a_plan() -> None:
    """A backbone copied out of a frozen model is not frozen for ever."""
    model = Net()
    FreezePlan().freeze("blocks").apply(model)
    part = copy.deepcopy(model.blocks)
    applied = FreezePlan().unfreeze("**").apply(part)
    assert in_eval(part.train()) == set()
    assert frozen(part) == set()
    applied.release()
    assert in_eval(part.train()) == set()


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
def test_an_applied_model_compiles_whole() -> None:
    """`fullgraph=True` traces held modules, before and after a phase, with the same numbers."""
    torch._dynamo.reset()
    model = Net()
    applied = FreezePlan().freeze("blocks", until_epoch=1).apply(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(8, 4)
    for epoch in range(2):
        applied.advance(epoch=epoch)
        compiled.train()
        assert in_eval(model) == (set() if epoch else below(model, "blocks"))
        model.dropout.eval()
        other = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            expected = other(x)
        out = compiled(x)
        assert torch.equal(out, expected)
        out.sum().backward()
        assert (model.blocks[0][0].weight.grad is None) == (epoch == 0)
    assert model.blocks[0][1].num_batches_tracked == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings(COMPILE_IMPORTS)
def test_a_plan_applied_to_a_compiled_model_holds() -> None:
    """The wrapper's `train()` reaches the held modules too."""
    torch._dynamo.reset()
    model = torch.compile(Net(), fullgraph=True, backend="eager")
    FreezePlan().freeze("blocks").freeze("head.bias").apply(model)
    model.train()
    model(torch.randn(8, 4)).sum().backward()
    assert model._orig_mod.blocks[0][1].num_batches_tracked == 0
    assert model._orig_mod.head.weight.grad is not None
    assert model._orig_mod.head.bias.grad is None
    torch._dynamo.reset()


def test_as_a_context_manager_it_releases_even_after_an_error() -> None:
    """The model is as it was after the block, however it ends."""
    model = Net()
    before = trace(model)
    with pytest.raises(RuntimeError, match="stop"), FreezePlan().freeze("blocks").apply(model):
        raise RuntimeError("stop")
    assert trace(model) == before


def test_release_may_be_repeated_and_ends_the_handle() -> None:
    """A released handle says so and does nothing; the model can be applied to anew."""
    model = Net()
    applied = FreezePlan().freeze("blocks").apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    applied.release()
    applied.release()
    assert repr(applied) == "<AppliedPlan: released>"
    for use in (
        lambda: applied.advance(epoch=0),
        lambda: applied.param_groups(lr=0.1),
        lambda: applied.optimizer(torch.optim.SGD, lr=0.1),
        lambda: applied.attach(optimizer),
        applied.lrs,
    ):
        with pytest.raises(FreezekitError, match="the plan was released; apply it again"):
            use()
    FreezePlan().freeze("head").apply(model)
    assert frozen(model) == {"head.weight", "head.bias"}


def test_release_gives_modes_that_were_switched_since_to_the_parent() -> None:
    """A module that was in eval before follows its parent once somebody called `train()`."""
    model = Net()
    model.blocks[0][1].eval()
    applied = FreezePlan().freeze("blocks").apply(model)
    applied.release()
    assert in_eval(model) == {"blocks.0.1"}
    applied = FreezePlan().freeze("blocks").apply(model)
    model.train()
    applied.release()
    assert in_eval(model) == set()
    applied = FreezePlan().freeze("blocks").apply(model)
    model.eval()
    applied.release()
    assert in_eval(model) == below(model, "")


def test_a_second_apply_is_refused() -> None:
    """On the model, on any part of it, and on a larger model around it."""
    model = Net()
    FreezePlan().freeze("blocks").apply(model)
    before = trace(model)
    around = nn.ModuleDict({"inner": model, "more": nn.Linear(2, 2)})
    for target, message in {
        model: "a plan is applied to this model already; release first: call release()",
        around: "a plan is applied to 'inner' already; release first: call release()",
        model.blocks: "'0.0' belongs to a larger model that a plan is applied to; release first",
        model.blocks[0]: "'0' belongs to a larger model that a plan is applied to; release first",
        model.head: "this model belongs to a larger model that a plan is applied to; release",
    }.items():
        with pytest.raises(FreezekitError) as caught:
            FreezePlan().freeze("**.bias").apply(target)
        assert str(caught.value).startswith(message)
    assert trace(model) == before


def test_what_no_rule_decides_keeps_its_flag() -> None:
    """The baseline survives apply, every phase, and release."""
    model = Net()
    model.blocks[0][0].weight.requires_grad = False
    model.head.bias.requires_grad = False
    plan = FreezePlan().unfreeze("blocks[0]", at_epoch=1).freeze("head.weight", until_epoch=2)
    applied = plan.apply(model)
    expected = [
        {"blocks.0.0.weight", "head.bias", "head.weight"},
        {"head.bias", "head.weight"},
        {"head.bias"},
    ]
    for epoch in (0, 1, 2, 1, 0):
        applied.advance(epoch=epoch)
        assert frozen(model) == expected[epoch]
    applied.release()
    assert frozen(model) == {"blocks.0.0.weight", "head.bias"}


def test_resolve_on_an_applied_model_starts_from_the_baseline() -> None:
    """Another plan is resolved as if the applied one were not there, and nothing changes."""
    model = Net()
    model.head.bias.requires_grad = False
    FreezePlan().freeze("blocks").apply(model)
    assert FreezePlan().resolve(model).at().frozen == {"head.bias"}
    assert FreezePlan().freeze("head").resolve(model).at().frozen == {"head.weight", "head.bias"}
    assert frozen(model) == {name for name in frozen(model) if name != "head.weight"}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3), (3, 3, 0, 3)])
def test_advance_depends_on_the_moment_alone(order: tuple[int, ...]) -> None:
    """Any way to a moment gives the flags and modes of going there directly."""
    plan = (
        FreezePlan()
        .freeze("blocks")
        .unfreeze("blocks[1]", at_epoch=1, until_epoch=4)
        .freeze("head.bias", at_epoch=2)
        .unfreeze("blocks[0][1]", at_epoch=3)
    )
    model = Net()
    applied = plan.apply(model)
    for epoch in order:
        applied.advance(epoch=epoch)
        direct = Net()
        there = plan.apply(direct)
        there.advance(epoch=epoch)
        assert frozen(model) == frozen(direct) == applied.phase.frozen
        assert in_eval(model) == in_eval(direct)
        assert str(applied.phase) == str(there.phase)


def test_advance_finds_parameters_by_module_and_name() -> None:
    """A tensor put in another's place, here by hand, is the one that opens and closes."""
    model = Net()
    applied = FreezePlan().freeze("head", until_step=5).apply(model)
    model.head.bias = nn.Parameter(torch.ones(2), requires_grad=False)
    applied.advance(step=5)
    assert model.head.bias.requires_grad
    model.head.bias.grad = torch.ones(2)
    applied.advance(step=4)
    assert not model.head.bias.requires_grad
    assert model.head.bias.grad is None


@pytest.mark.parametrize(
    ("clock", "message"),
    [
        ({}, "the plan counts in epochs; pass epoch=..."),
        ({"step": 3}, "the plan counts in epochs; pass epoch=..."),
        ({"epoch": -1}, "epoch must be a whole number >= 0, got -1"),
        ({"epoch": 0.5}, "epoch must be a whole number >= 0, got 0.5"),
        ({"epoch": True}, "epoch must be a whole number >= 0, got True"),
    ],
)
def test_a_clock_that_is_missing_or_wrong_is_refused(clock: dict[str, Any], message: str) -> None:
    """The error names the clock the plan counts in; nothing moves."""
    model = Net()
    applied = FreezePlan().freeze("blocks", until_epoch=1).apply(model)
    for use in (applied.advance, applied.resolved.at):
        with pytest.raises(PlanError) as caught:
            use(**clock)
        assert str(caught.value) == message
    assert applied.phase.index == 0


@pytest.mark.parametrize("clock", [2.0, True, None, -1])
def test_a_wrong_clock_is_refused_where_nothing_is_due(clock: object) -> None:
    """A number equal to a moment of the phase is no moment; nor does a released plan take one."""
    applied = FreezePlan().freeze("blocks", until_epoch=1).apply(Net())
    applied.advance(epoch=1)
    with pytest.raises(PlanError):
        applied.advance(epoch=clock)
    applied.release()
    with pytest.raises(FreezekitError, match="released"):
        applied.advance(epoch=1)


def test_clocks_the_plan_does_not_use_are_ignored() -> None:
    """A plan without moments takes any clock or none, one in epochs takes steps beside."""
    still = FreezePlan().freeze("blocks").apply(Net())
    still.advance()
    still.advance(epoch=3, step=900)
    assert str(still.phase) == "all of training"
    moving = FreezePlan().freeze("blocks", until_epoch=1).apply(Net())
    moving.advance(epoch=1, step=900)
    assert str(moving.phase) == "from epoch 1"


@pytest.mark.parametrize(
    ("plan", "totals", "message"),
    [
        (
            FreezePlan().unfreeze("head", warmup_steps=3, at_epoch=1),
            {},
            "warmup_steps counts in steps and the plan's moments in epochs; pass "
            "steps_per_epoch=...",
        ),
        (
            FreezePlan().freeze("head", at_fraction=0.5),
            {},
            "the plan counts in fractions of training; pass total_steps=... (or total_epochs=...)",
        ),
        (
            FreezePlan().freeze("head", at_epoch=1, until_step=9),
            {},
            "rule 1, freeze('head', at_epoch=1, until_step=9): the plan counts in epochs and in "
            "steps; pass steps_per_epoch=...",
        ),
        (
            FreezePlan().freeze("head", at_epoch=2, until_step=9),
            {"steps_per_epoch": 5},
            "rule 1, freeze('head', at_epoch=2, until_step=9): it closes at step 9, not after "
            "step 10 where it opens",
        ),
        (
            FreezePlan().freeze("head"),
            {"steps_per_epoch": 2, "total_epochs": 3, "total_steps": 7},
            "total_steps=7 contradicts steps_per_epoch=2 times total_epochs=3, which is 6; leave "
            "one of them out",
        ),
        (
            FreezePlan().freeze("head"),
            {"total_steps": 0},
            "total_steps must be a whole number >= 1, got 0",
        ),
        (
            FreezePlan().freeze("**"),
            {},
            "nothing is trainable: all 10 parameters are frozen; unfreeze "
            "some, or say FreezePlan(allow_all_frozen=True)",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_written(
    plan: FreezePlan, totals: dict[str, int], message: str
) -> None:
    """The error says what, where and what to do instead; the model is as it was."""
    model = Net()
    before = trace(model)
    with pytest.raises(FreezekitError) as caught:
        plan.apply(model, **totals)
    assert message in str(caught.value)
    assert trace(model) == before


@pytest.mark.parametrize(
    ("moments", "when"),
    [
        ({"at_step": 7}, "in the phase 'from step 7'"),
        ({"at_step": 7, "until_step": 8}, "in the phase 'step 7'"),
        ({"at_epoch": 2, "until_epoch": 4}, "in the phase 'epochs 2 to 3'"),
    ],
)
def test_a_phase_in_which_nothing_trains_is_named(moments: dict[str, int], when: str) -> None:
    """The error reads as a sentence, whether the phase is open, one moment or several."""
    with pytest.raises(PlanError) as caught:
        FreezePlan().freeze("**", **moments).apply(Net())
    assert str(caught.value).startswith(f"nothing is trainable {when}: all 10 parameters")


def test_a_learning_rate_that_changes_while_frozen_is_carried_out() -> None:
    """Only what an optimizer would see matters: the group has one value in all it trains."""
    plan = (
        FreezePlan()
        .group("blocks", lr=0.1, until_epoch=1)
        .group("blocks", lr=0.2, at_epoch=1)
        .freeze("blocks", until_epoch=1)
    )
    applied = plan.apply(Net())
    assert {group["lr"] for group in applied.param_groups("blocks", lr=0.5)} == {0.2}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda plan: plan.apply(Net(), total_epochs="3"), "total_epochs must be a whole number"),
        (lambda plan: plan.apply(Net()).advance(epoch="1"), "epoch must be a whole number >= 0"),
    ],
)
def test_a_number_that_is_none_is_refused(
    use: Callable[[FreezePlan], object], message: str
) -> None:
    """A text where a count belongs is a plan error that quotes it."""
    with pytest.raises(PlanError) as caught:
        use(FreezePlan().freeze("head", at_epoch=1))
    assert str(caught.value).startswith(message)


def test_a_model_that_is_none_is_refused() -> None:
    """Anything but a module is named by its class."""
    with pytest.raises(PlanError, match=r"expected a torch\.nn\.Module, got dict"):
        FreezePlan().freeze("**").apply({})


@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_frozen_rnn_follows_what_trains_before_it(cls: type[nn.RNNBase]) -> None:
    """Train mode without dropout while something upstream trains, eval otherwise."""
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "rnn": cls(4, 4, num_layers=2, dropout=0.5),
            "head": nn.Linear(4, 2),
        }
    )
    before = trace(model)
    plan = FreezePlan().freeze("rnn").freeze("embed", at_epoch=1, until_epoch=2)
    applied = plan.unfreeze("rnn", at_epoch=3).apply(model)
    seen = []
    for epoch in (0, 1, 2, 3, 0, 1):
        applied.advance(epoch=epoch)
        model.train()
        seen.append((model["rnn"].training, model["rnn"].dropout))
    held_in_train, held_in_eval, live = (True, 0.0), (False, 0.5), (True, 0.5)
    held = [held_in_train, held_in_eval, held_in_train]
    assert seen == [*held, live, *held[:2]]
    applied.release()
    assert trace(model) == before


def test_a_mode_asked_of_a_held_rnn_outlasts_another_way_to_hold_it() -> None:
    """Switched to eval while it is held in train mode, it is in eval when the plan is released."""
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "rnn": nn.GRU(4, 4, num_layers=2), "head": nn.Linear(4, 2)}
    )
    applied = FreezePlan().freeze("rnn").freeze("embed", at_epoch=1).apply(model)
    model.eval()
    applied.advance(epoch=1)
    applied.release()
    assert not model["rnn"].training


def test_a_copied_rnn_gets_its_dropout_back_with_its_next_plan() -> None:
    """The dropout that a hold took away travels with the copy."""
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "rnn": nn.GRU(4, 4, num_layers=2, dropout=0.5)}
    )
    FreezePlan().freeze("rnn").apply(model)
    other = copy.deepcopy(model)
    assert other["rnn"].dropout == 0.0
    FreezePlan().freeze("embed").apply(other)
    assert (other.train()["rnn"].training, other["rnn"].dropout) == (True, 0.5)


@pytest.fixture
def bert() -> BertForSequenceClassification:
    """A small classifier with random weights, in train mode."""
    config = BertConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


def test_bert_with_a_live_classifier_keeps_the_dropout_of_its_head(
    bert: BertForSequenceClassification,
) -> None:
    """`freeze("**").unfreeze("classifier")` holds the encoder and not the dropout after it."""
    FreezePlan().freeze("**").unfreeze("classifier").apply(bert)
    bert.train()
    assert in_eval(bert) == below(bert, "bert")
    assert bert.dropout.training
    tokens = torch.randint(32, (2, 5))
    hidden = [bert.bert(tokens).pooler_output for _ in range(2)]
    assert torch.equal(*hidden)


def test_bert_with_live_biases_keeps_every_dropout(bert: BertForSequenceClassification) -> None:
    """BitFit freezes most parameters and no module with a bias, so dropout stays alive."""
    FreezePlan().freeze("**").unfreeze("**.bias", "classifier").apply(bert)
    bert.train()
    assert in_eval(bert) == {
        path for path, module in bert.named_modules() if isinstance(module, nn.Embedding)
    }
    assert all(module.training for module in bert.modules() if isinstance(module, nn.Dropout))


def test_a_frozen_token_does_not_switch_the_root_to_eval() -> None:
    """A parameter of the root alone holds nothing."""

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(4))
            self.dropout = nn.Dropout()
            self.layer = nn.Linear(4, 4)

    model = Vision()
    FreezePlan().freeze("cls_token").apply(model)
    assert in_eval(model.train()) == set()
    assert frozen(model) == {"cls_token"}


def test_bert_trains_its_head_and_nothing_else(bert: BertForSequenceClassification) -> None:
    """After steps with `train()` before each, everything under `bert` is bit-identical."""
    applied = FreezePlan().freeze("bert").apply(bert)
    before = {name: p.detach().clone() for name, p in bert.named_parameters()}
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        bert.train()
        optimizer.zero_grad()
        tokens = torch.randint(32, (4, 5))
        bert(tokens, labels=torch.randint(2, (4,))).loss.backward()
        optimizer.step()
    moved = {n for n, p in bert.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    """A small language model whose output layer is tied to its embedding."""
    config = GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config).train()
    assert model.lm_head.weight is model.transformer.wte.weight
    return model


def test_tied_gpt2_takes_a_rule_about_the_transformer(gpt2: GPT2LMHeadModel) -> None:
    """`freeze("transformer")` freezes the tied tensor with it; a rule must leave something."""
    plan = FreezePlan().freeze("transformer").unfreeze("transformer.ln_f")
    applied = plan.apply(gpt2)
    assert applied.phase.trainable == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert "lm_head" in in_eval(gpt2.train())
    assert not gpt2.lm_head.weight.requires_grad
    everything = FreezePlan().freeze("transformer").resolve(gpt2)
    assert everything.at().trainable == set()


def test_tied_gpt2_refuses_an_output_layer_that_trains_alone(gpt2: GPT2LMHeadModel) -> None:
    """`freeze("**").unfreeze("lm_head")` names both names and both rules, and the remedy."""
    before = trace(gpt2)
    with pytest.raises(PlanError) as caught:
        FreezePlan().freeze("**").unfreeze("lm_head").apply(gpt2)
    assert str(caught.value) == (
        "'transformer.wte.weight' and 'lm_head.weight' name one tied tensor, but rule 1, "
        "freeze('**') sets trainable=False through 'transformer.wte.weight' and rule 2, "
        "unfreeze('lm_head') sets trainable=True through 'lm_head.weight'; say one thing for "
        "both, e.g. name 'transformer.wte.weight' in the later rule, or untie them"
    )
    assert trace(gpt2) == before


def test_tied_gpt2_takes_the_canonical_name(gpt2: GPT2LMHeadModel) -> None:
    """A later rule about the canonical name decides, for both names."""
    for names in (("transformer.wte",), ("lm_head", "transformer.wte")):
        resolved = FreezePlan().freeze("**").unfreeze(*names).resolve(gpt2)
        assert resolved.at().trainable == {"transformer.wte.weight"}
    rated = FreezePlan().group("**", lr=0.1).group("transformer.wte", lr=0.2).resolve(gpt2)
    assert rated.at().lr("lm_head.weight") == 0.2


def test_tied_gpt2_freezes_the_shared_tensor_by_its_other_name(gpt2: GPT2LMHeadModel) -> None:
    """`freeze("lm_head")` counts, as no rule reaches the tensor by its canonical name."""
    applied = FreezePlan().freeze("lm_head").apply(gpt2)
    assert applied.phase.frozen == {"transformer.wte.weight"}
    assert in_eval(gpt2.train()) == {"lm_head", "transformer.wte"}
    applied.release()
    assert gpt2.transformer.wte.weight.requires_grad


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A twelve-layer model without storage."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=12,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("model.layers.1", 9),
        ("model.layers.1.*", 9),
        ("model.layers[1]", 9),
        ("model.layers.{1,10}", 18),
        ("model.layers.1?", 18),
        ("model.layers[-2:]", 18),
        ("model.layers.{0..11}", 108),
        ("model.layers", 108),
        ("**.input_layernorm", 12),
        ("model.layers[::3].**@LlamaRMSNorm", 8),
    ],
)
def test_llama_layer_one_is_never_layer_ten(
    llama: LlamaForCausalLM, pattern: str, count: int
) -> None:
    """Each spelling selects the tensors it says, on a model without storage."""
    resolved = FreezePlan().freeze(pattern).resolve(llama)
    assert len(resolved.at().frozen) == count


def test_llama_a_range_in_brackets_is_refused_with_the_spelling_in_braces() -> None:
    """`[0-11]` reads like a glob's character class and is none."""
    for pattern in ("model.layers[0-11]", "model.layers.[0-11]"):
        with pytest.raises(PatternError) as caught:
            FreezePlan().freeze(pattern)
        assert repr(pattern) in str(caught.value)
        assert "[0-11] is not an index" in str(caught.value)
        assert "{0..11}" in str(caught.value)


def test_an_index_among_children_numbered_with_gaps_is_refused() -> None:
    """Position and number would differ, so the error lists the numbers and offers braces."""
    model = nn.ModuleDict({"layer": nn.ModuleDict({n: nn.Linear(2, 2) for n in ("8", "9", "11")})})
    before = trace(model)
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze("layer[0]").apply(model)
    assert "[0] counts children by position" in str(caught.value)
    assert "'layer' are numbered with gaps: 8, 9, 11" in str(caught.value)
    assert "{8..9}" in str(caught.value)
    assert trace(model) == before
    assert FreezePlan().freeze("layer.{8..9}").resolve(model).at().trainable == {
        "layer.11.weight",
        "layer.11.bias",
    }


TYPOS = [
    ("bert", "bert.encodr", "bert.encoder"),
    ("bert", "bert.embedding", "bert.embeddings"),
    ("bert", "bert.encoder.layers.0", "bert.encoder.layer.0"),
    ("bert", "bert.encoder.layer.0.output.dense.wieght",
     "bert.encoder.layer.0.output.dense.weight"),
    ("bert", "bert.encoder.layer.*.attention.self.qurey",
     "bert.encoder.layer.*.attention.self.query"),
    ("bert", "bert.embeddings.layernorm", "bert.embeddings.LayerNorm"),
    ("bert", "bert.Encoder", "bert.encoder"),
    ("bert", "clasifier", "classifier"),
    ("bert", "classifer.weight", "classifier.weight"),
    ("bert", "berts.pooler", "bert.pooler"),
    ("bert", "encoder.layer", "bert.encoder.layer"),
    ("bert", "bert.**.quary", "bert.**.query"),
    ("bert", "**@LayerNrom", "**@LayerNorm"),
    ("bert", "**@bertlayer", "**@BertLayer.**"),
    ("bert", "bert.encoder.layer.{0,2}", "bert.encoder.layer.1"),
    ("bert", "bert.encoder.layer.0.attention.query",
     "bert.encoder.layer.0.attention.**.query"),
    ("llama", "model.layer.1", "model.layers.1"),
    ("llama", "models.layers", "model.layers"),
    ("llama", "layers[0]", "model.layers[0]"),
    ("llama", "model.layers.*.mlp.gateproj", "model.layers.*.mlp.gate_proj"),
    ("llama", "model.layers.*.mlp.up_porj.weight", "model.layers.*.mlp.up_proj.weight"),
    ("llama", "model.layers.*.self_atn", "model.layers.*.self_attn"),
    ("llama", "model.embed_token", "model.embed_tokens"),
    ("llama", "lm_heads", "lm_head"),
    ("llama", "**@LlamaRMSnorm", "**@LlamaRMSNorm"),
    ("llama", "**.qproj", "**.q_proj"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "typo", "meant"), TYPOS)
def test_a_typo_is_refused_with_what_was_meant(
    name: str, typo: str, meant: str, request: pytest.FixtureRequest
) -> None:
    """The error quotes the pattern and its rule, offers the right one first, writes nothing."""
    model = request.getfixturevalue(name)
    before = trace(model)
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze("**.weight").unfreeze(typo).apply(model)
    message = str(caught.value)
    assert message.startswith(f"rule 2, unfreeze({typo!r}): ")
    assert "selects nothing: " in message
    assert f"; did you mean {meant!r}" in message
    assert trace(model) == before
    FreezePlan().freeze("**.weight").unfreeze(meant).resolve(model)


def test_a_class_whose_modules_hold_no_tensors_themselves_offers_the_subtree(
    bert: BertForSequenceClassification,
) -> None:
    """`@Class` covers a module's own tensors only; the error says so where there are none."""
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze("**@BertLayer").apply(bert)
    assert "of its own" in str(caught.value)
    assert "'**@BertLayer.**'" in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("bert.encodr", "'bert' has embeddings, encoder, pooler"),
        ("nothing", "the model has bert, dropout, classifier"),
        ("bert.encoder.layer.7", "'bert.encoder.layer' has 0..1"),
        (
            "bert.encoder.layer[7]",
            "[7] reaches none of the 2 numbered children of 'bert.encoder.layer'",
        ),
        ("bert.pooler[0]", "'bert.pooler' has no numbered children, only dense, activation"),
        ("classifier.weight.x", "'classifier.weight' has nothing below it"),
        ("dropout", "dropout (Dropout) has neither parameters nor buffers"),
        ("re:bert", "no parameter name matches it in full"),
        ("**@Conv2d", "no module there is of that class; the classes are "),
    ],
)
def test_where_matching_stopped_is_said(
    bert: BertForSequenceClassification, pattern: str, said: str
) -> None:
    """The error says the place that was reached and what exists there."""
    with pytest.raises(PatternError) as caught:
        FreezePlan().freeze(pattern).apply(bert)
    assert f"pattern {pattern!r} selects nothing: {said}" in str(caught.value)


class Stubborn(nn.Module):
    """A `train` of its own keeps what lies two levels below it in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
        self.asked: list[bool] = []

    def train(self, mode: bool = True) -> "Stubborn":
        """Switches all but the dropout."""
        super().train(mode)
        self.body[0].eval()
        self.asked.append(mode)
        return self


def test_below_a_train_of_the_users_own_that_one_decides_all_the_way() -> None:
    """Asked when it is held and let go; what stands behind it gets its parent's mode back."""
    model = nn.Sequential(Stubborn(), nn.Linear(2, 2), nn.Linear(2, 2)).train()
    model[0].asked.clear()
    applied = FreezePlan().freeze("[:2]", until_epoch=1).apply(model)
    assert model[0].asked == [False]
    applied.advance(epoch=1)
    assert model[0].asked[-1] is True
    assert not model[0].body[0].training
    assert model[0].body.training
    assert model[0].body[1].training
    assert model[1].training


def test_what_is_let_go_follows_its_parent_whatever_it_was_before() -> None:
    """Frozen for an epoch after the model went to eval, it is in eval from then on."""
    model = nn.Sequential(Stubborn(), nn.Linear(2, 2))
    applied = FreezePlan().freeze("[0]", at_epoch=1, until_epoch=2).apply(model)
    model.eval()
    for epoch in (1, 2):
        applied.advance(epoch=epoch)
        assert not model[0].training
        assert not model[0].body.training


def test_a_root_that_is_held_has_the_mode_that_was_asked_for() -> None:
    """Let go, and released, it is in eval if it was switched, and in train mode if not."""
    for switched in (True, False):
        model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        plan = FreezePlan(allow_all_frozen=True).freeze("**", until_epoch=1)
        applied = plan.apply(model)
        assert not model.training
        if switched:
            model.eval()
        applied.advance(epoch=1)
        assert model.training is model[1].training is not switched
        applied.advance(epoch=0)
        if switched:
            model.eval()
        applied.release()
        assert model.training is not switched


def test_a_held_module_asked_for_no_mode_in_particular_is_asked_for_train_mode() -> None:
    """`train()` means `train(True)`, of a held module as of any."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    applied = FreezePlan().freeze("[0]").apply(model)
    model.train(False)
    model[0].train()
    model.__dict__["training"] = True
    applied.release()
    assert model[0].training


def test_a_parameter_added_since_keeps_its_own_flag_when_a_plan_is_resolved_again() -> None:
    """The baseline is that of what was there; what is new has the flag that it has."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    FreezePlan().freeze("[0]").apply(model)
    model[0].extra = nn.Parameter(torch.ones(2))
    assert set(FreezePlan().resolve(model).at().trainable) == {
        name for name, _ in model.named_parameters()
    }
