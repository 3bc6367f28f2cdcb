"""Ways to break a cache that do not touch its files: none of them gives a wrong value."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_models import BERT, QUIET, text
from cache_trials import Batch, Run, distance, trial
from torch import nn

from freezekit import AppliedPlan, FreezekitError, FreezePlan
from freezekit.cache import ActivationCache

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the frozen part cannot be cached:UserWarning"),
]

ROWS, LENGTH, WIDTH = 12, 7, 6
FROZEN = FreezePlan().freeze("embed", "block")


class Reader(nn.Module):
    """Scores texts: a frozen part, a mean over what is no padding, a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.2), nn.LayerNorm(WIDTH)]
        self.block = nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(WIDTH, 3)
        self.scale = 1.0

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        extra: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        hidden = self.embed(input_ids)
        if extra is not None:
            hidden = hidden + extra
        hidden = self.block(hidden * self.scale)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        scores = self.head(self.drop(self.norm(pooled)))
        if labels is None:
            return {"scores": scores}
        return {"loss": nn.functional.cross_entropy(scores, labels), "scores": scores}


def data(seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns texts of two to seven tokens with padding at their end, and labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LENGTH + 1, (ROWS,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    ids = torch.randint(3, 30, (ROWS, LENGTH), generator=generator) * mask
    labels = torch.randint(0, 3, (ROWS,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(passes: int = 1, seed: int = 0, **more: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yields batches of five and seven rows, in another order in each pass, cut to their length."""
    whole = data(seed) | more
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(passes):
        order = torch.randperm(ROWS, generator=generator)
        for some in (order[:5], order[5:]):
            batch = {key: value[some] for key, value in whole.items()}
            length = int(batch["attention_mask"].sum(1).max())
            for key in ("input_ids", "attention_mask", "extra"):
                if key in batch:
                    batch[key] = batch[key][:, :length]
            yield batch


def train(run: Run, passes: int = 1, seed: int = 0, **more: torch.Tensor) -> None:
    for batch in batches(passes, seed, **more):
        run.step(batch)


def look(run: Run, *, mode: bool | None = None) -> None:
    """Evaluates without gradients, in some mode."""
    before = run.model.training
    run.model.train(before if mode is None else mode)
    with torch.no_grad():
        for batch in batches():
            run.call(batch)
    run.model.train(before)


Change = Callable[[Run], None]


def load(run: Run) -> None:
    state = {name: value * 1.5 for name, value in run.model.block.state_dict().items()}
    run.model.block.load_state_dict(state)


def assign(run: Run) -> None:
    state = {name: value * 1.5 for name, value in run.model.block.state_dict().items()}
    run.model.block.load_state_dict(state, assign=True)
    run.model.block.requires_grad_(False)


def write(run: Run) -> None:
    with torch.no_grad():
        run.model.block[0].weight[0] += 1.0


def swap_data(run: Run) -> None:
    run.model.block[0].weight.data = run.model.block[0].weight.data * 2


def swap(run: Run) -> None:
    weight = run.model.block[0].weight.detach() * 2
    run.model.block[0].weight = nn.Parameter(weight, requires_grad=False)


def swap_module(run: Run) -> None:
    generator = torch.Generator().manual_seed(9)
    run.model.block[4] = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    with torch.no_grad():
        run.model.block[4].weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator))
        run.model.block[4].bias.zero_()


def round_trip(run: Run) -> None:
    """Rounds weights; memory that is let go of may come back at the same address."""
    run.model.block.bfloat16()
    run.model.block.float()


def patch(run: Run) -> None:
    linear = run.model.block[0]
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 3


def rescale(run: Run) -> None:
    run.model.scale = run.model.scale + 1.0


def epsilon(run: Run) -> None:
    run.model.block[3].eps = run.model.block[3].eps + 0.5


def open_by_hand(run: Run) -> None:
    run.model.block[4].requires_grad_(True)


def restart(run: Run) -> None:
    """Puts the frozen modules in train mode: dropout is at work."""
    for module in run.model.block.modules():
        module.training = True


CHANGES = {
    each.__name__: each
    for each in (
        load, assign, write, swap_data, swap, swap_module, round_trip, patch, rescale, open_by_hand
    )
}  # fmt: skip


def right(drive: Callable[[Run], None], hits: int = 1, plan: FreezePlan = FROZEN) -> None:
    """Asserts that a run comes to the same with a cache, which answers some of it."""
    verdict = trial(Reader, plan, drive)
    assert not verdict.refused, verdict
    assert verdict.difference < 2e-5
    assert verdict.hits >= hits


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_is_frozen_is_seen(name: str) -> None:
    """Whatever changes frozen values or how they are computed, the next pass computes anew."""

    def drive(run: Run) -> None:
        train(run, 2)
        CHANGES[name](run)
        train(run, 2)

    right(drive, hits=ROWS)


def test_a_change_back_and_forth_is_seen() -> None:
    """Weights that alternate, as with an average that is swapped in for evaluation, never mix."""

    def drive(run: Run) -> None:
        one = {name: value.clone() for name, value in run.model.block.state_dict().items()}
        two = {name: value * 2 for name, value in one.items()}
        for state in (one, two, one, two):
            run.model.block.load_state_dict(state)
            train(run)
            look(run, mode=False)

    right(drive)


def test_a_frozen_module_in_train_mode_is_computed() -> None:
    """Dropout that is switched on by hand works as ever, draw for draw; after it, rows hit."""

    def drive(run: Run) -> None:
        train(run, 2)
        restart(run)
        train(run, 1)
        run.model.train()
        train(run, 2)

    right(drive, hits=ROWS)


def test_modes_and_evaluation_between_are_right() -> None:
    """Evaluation between passes, without gradients, in inference mode: each is as ever."""

    def drive(run: Run) -> None:
        for _ in range(2):
            train(run)
            look(run, mode=False)
            look(run)
            with torch.inference_mode():
                for batch in batches():
                    run.call(batch)
        train(run, 2)

    right(drive, hits=8 * ROWS)


def test_what_inference_mode_stored_can_be_trained_on() -> None:
    """Rows stored in inference mode are good for a pass with gradients."""

    def drive(run: Run) -> None:
        with torch.inference_mode():
            for batch in batches():
                run.call(batch)
        train(run, 2)

    right(drive, hits=2 * ROWS)


def test_a_mode_or_a_gradient_that_decides_is_right() -> None:
    """A model that computes otherwise in training, or with gradients, has rows for each."""

    class Moody(Reader):
        def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> dict[str, torch.Tensor]:
            self.scale = 1.0
            extra = torch.ones(1) * (2.0 * self.training + torch.is_grad_enabled())
            return super().forward(*args, extra=extra, **kwargs)

    def drive(run: Run) -> None:
        for _ in range(3):
            train(run)
            look(run)
            look(run, mode=False)

    verdict = trial(Moody, FROZEN, drive)
    assert verdict.right
    assert verdict.hits > 0


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_on_and_off_is_right(inside: bool) -> None:
    """What was computed in bfloat16 is no answer in float32, and the other way round."""

    def drive(run: Run) -> None:
        for index in range(6):
            with torch.autocast("cpu", torch.bfloat16, enabled=(index % 2 == 0) is inside):
                look(run)
            if not inside:
                train(run)

    right(drive)


def test_phases_open_and_close_and_go_back() -> None:
    """Gradual unfreezing, closing again and a return to an earlier epoch are all as ever."""
    plan = (
        FreezePlan()
        .freeze("embed", "block", "norm")
        .unfreeze("block[4]", at_epoch=1)
        .unfreeze("block[0]", at_epoch=2)
        .freeze("block", at_epoch=3)
    )

    def drive(run: Run) -> None:
        for epoch in (0, 1, 2, 3, 0, 3, 1):
            run.applied.advance(epoch=epoch)
            train(run)
            look(run, mode=False)

    right(drive, hits=ROWS, plan=plan)


VARIED: dict[str, Callable[[dict[str, Any]], Batch]] = {
    "other labels": lambda b: b | {"labels": (b["labels"] + 1) % 3},
    "no labels": lambda b: {key: value for key, value in b.items() if key != "labels"},
    "left padding": lambda b: b | {key: b[key].flip(1) for key in ("input_ids", "attention_mask")},
    "another mask over the same ids": lambda b: (
        b | {"attention_mask": torch.ones_like(b["attention_mask"])}
    ),
    "holes in the mask": lambda b: (
        b
        | {
            "attention_mask": b["attention_mask"]
            * (torch.arange(b["attention_mask"].shape[1]) != 1)
        }
    ),
    "an empty row": lambda b: (
        b
        | {
            "attention_mask": b["attention_mask"]
            * (torch.arange(len(b["labels"])) != 2).unsqueeze(1)
        }
    ),
    "other padding": lambda b: b | {"input_ids": b["input_ids"] + 7 * (1 - b["attention_mask"])},
    "padding that differs": lambda b: (
        b
        | {
            "input_ids": b["input_ids"]
            + torch.arange(b["input_ids"].shape[1]) * (1 - b["attention_mask"])
        }
    ),
    "more padding": lambda b: (
        b | {key: nn.functional.pad(b[key], (0, 3)) for key in ("input_ids", "attention_mask")}
    ),
    "strides": lambda b: b | {"input_ids": b["input_ids"].t().contiguous().t()},
    "positions": lambda b: (b["input_ids"], b["attention_mask"], b["labels"]),
    "booleans": lambda b: b | {"attention_mask": b["attention_mask"].bool()},
    "narrow ids": lambda b: b | {"input_ids": b["input_ids"].int()},
    "one row": lambda b: {
        key: value[:1].repeat(2, *[1] * (value.dim() - 1)) for key, value in b.items()
    },
    "no row": lambda b: {key: value[:0] for key, value in b.items() if key != "labels"},
    "as many rows as places": lambda b: {
        key: value.repeat(2, *[1] * (value.dim() - 1))[: b["input_ids"].shape[1]]
        for key, value in b.items()
    },
    "repeats": lambda b: {key: torch.cat([value, value]) for key, value in b.items()},
}


@pytest.mark.parametrize("name", VARIED)
def test_batches_of_any_form_are_right(name: str) -> None:
    """Whatever form and padding a batch has, before or after its rows were stored in another."""
    vary = VARIED[name]

    def drive(run: Run) -> None:
        run.model.eval()
        for batch in batches():
            run.step(batch)
            run.step(vary(batch))
        for batch in batches():
            run.step(vary(batch))
            run.step(batch)

    right(drive)


def test_a_form_that_comes_first_is_right() -> None:
    """What is learned from an odd batch does not hold for others."""
    for name in ("one row", "an empty row", "holes in the mask", "no row", "left padding"):
        vary = VARIED[name]

        def drive(run: Run, vary: Callable[[dict[str, Any]], Batch] = vary) -> None:
            run.model.eval()
            for batch in batches(2):
                run.step(vary(batch))
                run.step(batch)

        right(drive)


@pytest.mark.parametrize("shape", [(ROWS, LENGTH, WIDTH), (ROWS, 1, WIDTH)])
def test_an_input_besides_the_ids_counts(shape: tuple[int, ...]) -> None:
    """The same ids with other numbers beside them are other rows."""
    one, two = torch.randn(shape), torch.randn(shape)

    def drive(run: Run) -> None:
        for extra in (one, two, one, two):
            train(run, extra=extra)
        train(run)

    right(drive, hits=ROWS)


def test_a_tensor_for_all_rows_counts() -> None:
    """One tensor that all rows share is part of what they are, as long as a batch or not."""
    shared = torch.randn(5, 1, WIDTH)

    def drive(run: Run) -> None:
        for factor in (1.0, 2.0, 1.0):
            for batch in batches():
                run.step(batch | {"extra": shared[:1, 0] * factor})

    right(drive, hits=ROWS)


def attention(run: Run) -> None:
    run.model.set_attn_implementation("eager")


def test_another_attention_is_computed_anew() -> None:
    """Another implementation of attention is another function, if only in the last digits."""
    import transformers

    def build() -> nn.Module:
        return transformers.BertModel(
            transformers.BertConfig(**BERT | QUIET | {"num_hidden_layers": 2})
        )

    seen = []
    for implementation in (None, "eager"):
        torch.manual_seed(0)
        model = build()
        applied = FreezePlan().freeze("embeddings", "encoder.layer[:1]").apply(model)
        torch.manual_seed(1)
        batch = text(6)
        with ActivationCache(applied) as cache:
            model(**batch)
            if implementation is not None:
                model.set_attn_implementation(implementation)
            seen.append(model(**batch)[0].detach())
            assert cache.stats().hits == (0 if implementation else 6)
    assert distance(seen[:1], seen[1:]) < 1e-5


def state_of(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [(module, dict(vars(module))) for module in model.modules()]


def made() -> tuple[Reader, AppliedPlan]:
    torch.manual_seed(0)
    model = Reader()
    return model, FROZEN.apply(model)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_pass_leaves_nothing_behind(error: type[BaseException]) -> None:
    """Whenever a pass ends early, the model is as before, and what comes after is right."""
    model, applied = made()
    model.eval()
    some = next(batches())
    expected = model(**some)["scores"]
    raises = [True]
    original = nn.Linear.forward

    def failing(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if raises[0] and self in (model.head, model.block[4]):
            raise error
        return original(self, x)

    with ActivationCache(applied) as cache, pytest.MonkeyPatch.context() as patched:
        before = state_of(model)
        patched.setattr(nn.Linear, "forward", failing)
        for stored in (False, True):
            for _ in range(2):
                raises[0] = True
                with pytest.raises((error, FreezekitError)):
                    model(**some)
                assert state_of(model) == before
            raises[0] = False
            found = model(**some)["scores"]
            assert torch.allclose(found, expected, atol=1e-6)
            assert (cache.stats().hits > 0) is stored
            assert state_of(model) == before


def test_close_leaves_no_trace() -> None:
    """After `close` every module holds what it held, and calls reach the model's own forward."""
    model, applied = made()
    before = state_of(model)
    cache = ActivationCache(applied)
    for batch in batches(2):
        model(**batch)["loss"].backward()
    assert state_of(model) != before
    cache.close()
    cache.close()
    assert state_of(model) == before
    assert "forward" not in vars(model)


def test_a_second_cache_is_refused() -> None:
    """Two caches would answer for each other: the second says so, and the first goes on."""
    model, applied = made()
    model.eval()
    with ActivationCache(applied) as cache:
        model(**next(batches()))
        with pytest.raises(FreezekitError, match="close"):
            ActivationCache(applied)
        model(**next(batches()))
        assert cache.stats().hits == 5
    with ActivationCache(applied):
        pass


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_no_cache(copied: Callable[[nn.Module], nn.Module]) -> None:
    """A copy of a model computes with its own weights, with nothing of the cache."""
    model, applied = made()
    model.eval()
    some = next(batches())
    with ActivationCache(applied) as cache:
        model(**some)
        other = copied(model)
        with torch.no_grad():
            other.block[0].weight.mul_(2)
        found = other(**some)["scores"]
        assert cache.stats().hits == 0
        with torch.no_grad():
            model.block[0].weight.mul_(2)
        assert torch.allclose(found, model(**some)["scores"], atol=1e-6)


def test_saved_weights_are_those_of_the_model(tmp_path: Path) -> None:
    """What `state_dict` holds has the names and values it has without a cache."""
    model, applied = made()
    names = [*model.state_dict()]
    with ActivationCache(applied):
        model(**next(batches()))
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    saved = torch.load(tmp_path / "weights.pt")
    assert [*saved] == names
    assert (
        all(torch.equal(saved[name], value) for name, value in Reader().state_dict().items())
        is False
    )
    model.load_state_dict(saved)


def test_gradient_accumulation_through_learning_is_right() -> None:
    """A form that is learned between a forward and its backward disturbs neither."""

    def drive(run: Run) -> None:
        for first, second in zip(batches(3), batches(3, seed=0), strict=True):
            run.optimizer.zero_grad()
            second.pop("labels")
            loss = run.call(first)["loss"] + run.call(second)["scores"].square().mean()
            loss.backward()
            run.note([each.grad for each in run.model.parameters()])
            run.optimizer.step()

    right(drive, hits=ROWS)


def test_the_users_own_changes_of_outputs_stay_theirs() -> None:
    """An output that is changed in place, or kept and read later, is not that of the store."""

    class Showing(Reader):
        def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.shown = self.block(self.embed(input_ids))
            return self.shown, self.head(self.shown.mean(1))

    def drive(run: Run) -> None:
        for batch in batches(3):
            batch = {"input_ids": batch["input_ids"]}
            run.step(batch)
            shown, _ = run.call(batch)
            run.note(run.model.shown)
            shown.mul_(7)
            run.call(batch)

    verdict = trial(Showing, FreezePlan().freeze("embed", "block", "norm"), drive)
    assert not verdict.refused
    assert verdict.difference < 2e-5
    assert verdict.hits > 0


def test_nothing_is_warned_of_in_ordinary_training() -> None:
    """A plain run warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right(lambda run: train(run, 3), hits=2 * ROWS)
