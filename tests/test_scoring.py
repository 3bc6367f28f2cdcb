"""Scores of layers: each method against a direct computation, and the plans they lead to."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from freezekit import FreezekitError, FreezePlan, PlanError, infer_layers
from freezekit._gradients import norm
from freezekit.scoring import Score, Scores, score_layers, to_plan


class Block(nn.Module):
    """A block with a residual, batch norm and dropout."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.out(functional.relu(self.norm(self.fc(x)))))


class Net(nn.Module):
    """A stem, three blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


Batch = tuple[torch.Tensor, torch.Tensor]


def data(count: int = 3, size: int = 8) -> list[Batch]:
    return [(torch.randn(size, 5), torch.randint(2, (size,))) for _ in range(count)]


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).pow(2).mean()


def gradients(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Returns the gradients that autograd gives for an untouched copy of the model."""
    model = copy.deepcopy(model).requires_grad_(True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model, batch), parameters)
    return dict(zip(names, found, strict=True))


def rows(*given: tuple[str, str | None, int, float], numel: int = 100) -> Scores:
    found = tuple(Score(name, kind, (name,), size, value) for name, kind, size, value in given)
    return Scores("fisher", found, numel)


def chosen(scores: Scores, share: float) -> tuple[str, ...]:
    plan = to_plan(scores, train_at_most=share)
    assert plan.rules[0] == FreezePlan().freeze("**").rules[0]
    return plan.rules[1].patterns


def test_relative_gradient_norm_is_that_of_autograd() -> None:
    """Per layer the gradient norm over the weight norm, and the mean over the batches."""
    model, batches = Net().eval(), data()
    scores = score_layers(model, batches, loss)
    weights = dict(model.named_parameters())
    expected = []
    for layer in infer_layers(model):
        size = torch.cat([weights[name].flatten() for name in layer.parameter_names]).norm()
        ratios = []
        for batch in batches:
            found = gradients(model, batch)
            whole = torch.cat([found[name].flatten() for name in layer.parameter_names])
            ratios.append((whole.norm() / size).item())
        expected.append(sum(ratios) / len(ratios))
    assert [row.value for row in scores.rows] == pytest.approx(expected, rel=1e-5)
    assert [row.name for row in scores.rows] == [layer.name for layer in infer_layers(model)]
    assert {row.kind for row in scores.rows} == {None}


def test_fisher_is_the_mean_squared_gradient() -> None:
    """Per layer the mean over its elements and over the batches."""
    model, batches = Net().eval(), data(4, 1)
    scores = score_layers(model, batches, loss, method="fisher")
    expected = []
    for layer in infer_layers(model):
        squares = [
            torch.cat([gradients(model, batch)[n].flatten() for n in layer.parameter_names]) ** 2
            for batch in batches
        ]
        expected.append(torch.stack(squares).mean().item())
    assert [row.value for row in scores.rows] == pytest.approx(expected, rel=1e-5)


def spectrum(weight: np.ndarray) -> float:
    """Computes Spectrum's score from its paper's formulas."""
    singular = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)
    short, long = sorted((len(weight), weight.size // len(weight)))
    sigma = (np.quantile(singular, 0.75) - np.quantile(singular, 0.25)) / 1.349
    threshold = sigma * np.sqrt((1 + np.sqrt(short / long)) ** 2)
    below = singular[singular <= threshold]
    above = singular[singular > threshold]
    return float(above.sum() / (below.sum() if len(below) else 1.0) / singular[0])


SHAPES = [(40, 40), (64, 40), (40, 64), (100, 10), (16, 3, 3, 3), (16, 16, 1, 1), (2, 30)]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_snr_is_that_of_numpy(shape: tuple[int, ...], kind: torch.dtype) -> None:
    """Singular values above the threshold over those below, over the largest."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape).to(kind))
    model.weight.data[0] += 2
    (row,) = score_layers(model, method="snr").rows
    expected = spectrum(model.weight.detach().double().numpy())
    assert row.value == pytest.approx(expected, rel=1e-6)
    assert 0 < row.value < math.inf


def test_snr_threshold_is_that_of_marchenko_and_pastur() -> None:
    """A singular value a little above the threshold is signal, one a little below is noise."""
    singular = torch.arange(1.0, 101.0)
    edge = 49.5 / 1.349 * 2  # of the interquartile range, for a square matrix
    model = nn.Linear(100, 100, bias=False)
    values = []
    for near in (edge - 0.02, edge + 0.02):
        singular[72] = near
        model.weight.data = singular.diag()
        signal = singular[singular > edge].sum()
        values.append((signal / (singular.sum() - signal) / 100).item())
        assert score_layers(model, method="snr").rows[0].value == pytest.approx(values[-1])
    assert values[1] > 1.03 * values[0]


def test_snr_of_the_extremes() -> None:
    """Without noise below the threshold the divisor is 1; zeros score 0; rank one has no noise."""
    model = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    weights = (torch.eye(6), torch.zeros(6, 6), torch.ones(6, 6))
    for layer, weight in zip(model, weights, strict=True):
        assert isinstance(layer, nn.Linear)
        layer.weight.data = weight
    values = [row.value for row in score_layers(model, method="snr").rows]
    assert values == [pytest.approx(6.0), 0.0, math.inf]


def test_snr_scores_matrices_and_takes_their_bias_along() -> None:
    """Norms, vectors and single rows have no row; a module's only matrix stands for the module."""
    model = Net()
    model.cls_token = nn.Parameter(torch.randn(1, 1, 6))
    scores = score_layers(model, method="snr")
    assert [(row.name, row.kind, row.numel) for row in scores.rows] == [
        ("embed", "embed", 36),
        *[(f"blocks.{number}.{kind}", kind, 42) for number in range(3) for kind in ("fc", "out")],
        ("head", "head", 14),
    ]
    assert [row.patterns for row in scores.rows] == [(row.name,) for row in scores.rows]
    assert scores.numel == sum(p.numel() for p in model.parameters())


def test_snr_names_the_parameters_where_a_module_has_several_matrices() -> None:
    """Each weight of an RNN and of an attention in one piece is a row of its own, without bias."""
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "attention": nn.MultiheadAttention(8, 2)})
    scores = score_layers(model, method="snr")
    assert [(row.name, row.patterns) for row in scores.rows] == [
        ("rnn.weight_ih_l0", ("rnn.weight_ih_l0",)),
        ("rnn.weight_hh_l0", ("rnn.weight_hh_l0",)),
        ("attention", ("attention.in_proj_weight", "attention.in_proj_bias")),
        ("attention.out_proj", ("attention.out_proj",)),
    ]
    check_patterns(model, scores)


def check_patterns(model: nn.Module, scores: Scores) -> None:
    """Asserts that each row's patterns select as many elements as it says, no two the same."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    seen: set[str] = set()
    for row in scores.rows:
        plan = FreezePlan().freeze("**").unfreeze(*row.patterns)
        trainable = plan.resolve(model).at().trainable
        assert sum(sizes[name] for name in trainable) == row.numel
        assert not seen & trainable
        seen |= trainable


BERT = BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=10,
)


def test_tied_weights_count_once_and_never_contradict() -> None:
    """A module that holds another row's tensor by a second name is opened parameter by parameter.

    The decoder of a masked language model is tied to its embeddings, so a rule for all of the head
    would speak about them too.
    """
    model = BertForMaskedLM(BERT).eval()
    batch = torch.randint(20, (2, 6))

    def tokens_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        found = model(input_ids=batch, labels=batch).loss
        assert isinstance(found, torch.Tensor)
        return found

    scores = score_layers(model, [batch], tokens_loss)
    assert sum(row.numel for row in scores.rows) == scores.numel == model.num_parameters()
    check_patterns(model, scores)
    check_patterns(model, score_layers(model, method="snr"))
    tokens_loss(model, batch).backward()
    weight = model.bert.embeddings.word_embeddings.weight
    assert weight.grad is not None
    stem = list(model.bert.embeddings.parameters())
    ratio = torch.cat([p.grad.flatten() for p in stem if p.grad is not None]).norm()
    ratio /= torch.cat([p.flatten() for p in stem]).norm()
    assert scores.rows[0].value == pytest.approx(ratio.item(), rel=1e-5)


def test_layers_are_scored_as_the_user_divides_them() -> None:
    """`layers` says what gets a row."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    scores = score_layers(
        model,
        [torch.ones(1, 2)],
        lambda model, batch: model(batch).mean(),
        layers={"stem": "[0]", "blocks": "[1]"},
    )
    assert [row.name for row in scores.rows] == ["stem", "1", "head"]


def test_kinds_are_paths_inside_the_block() -> None:
    """What repeats in every block is one kind, whatever stands outside is one by itself."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
    )
    scores = score_layers(LlamaForCausalLM(config), method="snr")
    kinds = [row.kind for row in scores.rows]
    assert kinds[:4] == [
        "model.embed_tokens",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ]
    assert kinds.count("mlp.down_proj") == 3
    assert kinds[-1] == "lm_head"


def test_a_module_called_stem_has_a_kind_of_its_own() -> None:
    """The layer "stem" is no block, also where a module has that name."""
    blocks = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(4, 4)}) for _ in range(3))
    stem = nn.ModuleDict({"fc": nn.Linear(4, 4)})
    scores = score_layers(nn.ModuleDict({"stem": stem, "blocks": blocks}), method="snr")
    assert [row.kind for row in scores.rows] == ["stem.fc", "fc", "fc", "fc"]


def test_gpt2_is_scored_with_its_tied_head() -> None:
    """The embedding that is the head too is one row, and the plan for it applies."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    scores = score_layers(model, method="snr")
    check_patterns(model, scores)
    assert scores.rows[0].name == "transformer.wte"
    to_plan(scores, train_at_most=0.5).apply(model).release()


def state(model: nn.Module) -> list[object]:
    """Returns all that scoring must leave alone."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(id(tensor), tensor._version, tensor.requires_grad) for tensor in tensors],
        [tensor.clone() for tensor in tensors],
        [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        [module.training for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        [list(module._parameters) for module in model.modules()],
        list(model.state_dict()),
        torch.get_rng_state(),
    ]


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, list | tuple):
        assert isinstance(two, list | tuple)
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["relative_gradient_norm", "fisher"])
def test_the_model_and_the_generator_stay_as_they_are(method: str, training: bool) -> None:
    """Flags, gradients, buffers, modes, tensors and the generator are untouched, bit for bit."""
    model = Net().train(training)
    loss(model, data()[0]).backward()
    model.blocks[1].requires_grad_(False)
    before, batches = state(model), data()
    torch.set_rng_state(before[-1])  # type: ignore[arg-type]
    score_layers(model, batches, loss, method=method)  # type: ignore[arg-type]
    assert same(before, state(model))


def test_a_loss_that_fails_leaves_the_model_as_it_is() -> None:
    """An exception in the loss passes through, and the model's own tensors are back."""
    model, batches = Net(), data()
    before = state(model)

    def broken(model: nn.Module, batch: Batch) -> torch.Tensor:
        model(batch[0])
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        score_layers(model, batches, broken)
    assert same(before, state(model))


def test_frozen_parameters_score_as_if_they_trained() -> None:
    """Flags and an applied plan say nothing about the scores."""
    model, batches = Net().eval(), data()
    expected = score_layers(model, batches, loss)
    model.requires_grad_(False)
    assert score_layers(model, batches, loss) == expected
    with FreezePlan().freeze("**").unfreeze("head").apply(model):
        assert score_layers(model, batches, loss) == expected
    with torch.no_grad():
        assert score_layers(model, batches, loss) == expected
    with torch.inference_mode():
        assert score_layers(model, batches, loss) == expected


def test_every_batch_meets_the_same_buffers() -> None:
    """Running statistics do not go from batch to batch: the same batch twice scores the same."""
    model, (batch,) = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), data(1)
    seen = []

    def watched(model: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(model[1].num_batches_tracked.item())  # type: ignore[index]
        return loss(model, batch)

    twice = score_layers(model, [batch, batch], watched)
    assert seen == [0, 0]
    once = score_layers(model, [batch], watched)
    assert [row.value for row in twice.rows] == pytest.approx([row.value for row in once.rows])


def test_scores_repeat_with_dropout_at_work() -> None:
    """Under one state of the generator two runs agree."""
    model, batches = Net(), data()
    assert score_layers(model, batches, loss) == score_layers(model, batches, loss)


def test_rnns_score_and_keep_their_own_lists() -> None:
    """An LSTM, which keeps lists of its weights, scores as autograd says and keeps its lists."""
    model = nn.Sequential(nn.LSTM(3, 4))
    model.requires_grad_(False)
    batch, (rnn,) = torch.randn(5, 2, 3), model
    lists = [id(rnn._flat_weights), id(rnn._flat_weight_refs), *map(id, rnn._flat_weights)]

    def last(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch)[0].pow(2).mean()

    scores = score_layers(model, [batch], last, method="fisher")
    assert [id(rnn._flat_weights), id(rnn._flat_weight_refs)] == lists[:2]
    assert list(map(id, rnn._flat_weights)) == lists[2:]
    model.requires_grad_(True)
    last(model, batch).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert scores.rows[0].value == pytest.approx(expected.pow(2).mean().item(), rel=1e-5)


def test_shared_modules_and_parametrized_ones_score() -> None:
    """A module in two places is one row, its gradient the sum of both; weight norm works too."""
    shared = nn.Linear(4, 4)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(shared, normed, shared)
    ids = list(map(id, model.parameters()))
    batch = torch.randn(3, 4)
    scores = score_layers(model, [batch], square, method="fisher")
    assert list(map(id, model.parameters())) == ids
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    assert [row.numel for row in scores.rows] == [20, 24]
    square(model, batch).backward()
    expected = torch.cat([p.grad.flatten() for p in shared.parameters() if p.grad is not None])
    assert scores.rows[0].value == pytest.approx(expected.pow(2).mean().item(), rel=1e-5)
    check_patterns(model, scores)


def test_the_loss_gets_the_model_inside_wrappers_with_all_it_has() -> None:
    """Wrappers are looked through, and attributes and methods of the model are there."""
    model, batches = Net().eval(), data()
    seen = []

    def reading(model: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(type(model))
        assert isinstance(model, Net)
        return loss(model, batch) + 0 * model.head.weight.sum()

    wrapped = score_layers(nn.DataParallel(model), batches, reading)
    assert wrapped == score_layers(model, batches, loss)
    assert set(seen) == {Net}


def test_checkpointed_blocks_score_the_same() -> None:
    """Backward calls the blocks again and meets the stand-ins there, too."""
    model, batches = Net().eval(), data()
    expected = score_layers(model, batches, loss)
    model.requires_grad_(False)
    for block in model.blocks:
        inner = block.forward
        block.forward = (  # type: ignore[method-assign]
            lambda x, inner=inner: checkpoint(inner, x, use_reentrant=False)
        )
    found = score_layers(model, batches, loss)
    assert [row.value for row in found.rows] == pytest.approx(
        [row.value for row in expected.rows], rel=1e-5
    )


def test_gradients_outside_the_model_stay_out() -> None:
    """A loss with parameters of its own gets no gradients there."""
    model, extra = nn.Linear(3, 2), nn.Linear(2, 1)
    score_layers(model, [torch.randn(4, 3)], lambda model, batch: extra(model(batch)).mean())
    assert [p.grad for p in (*extra.parameters(), *model.parameters())] == [None] * 4


def test_sparse_gradients_score() -> None:
    """An embedding with sparse gradients scores as one with dense ones."""
    dense = nn.Embedding(6, 3)
    sparse = nn.Embedding(6, 3, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    values = [
        score_layers(model, [torch.tensor([1, 1, 4])], square, method="fisher").rows[0].value
        for model in (dense, sparse)
    ]
    assert values[1] == pytest.approx(values[0])
    assert values[0] > 0


def test_long_sums_keep_their_digits() -> None:
    """The norm of many elements in single precision is that in double."""
    long = torch.randn(5_000_000)
    assert norm(long).item() == pytest.approx(long.double().norm().item(), rel=1e-7)


def test_a_layer_that_some_batches_do_not_use_counts_as_zero_there() -> None:
    """The mean is over all batches."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    def prefix(model: nn.Module, batch: tuple[int, torch.Tensor]) -> torch.Tensor:
        assert isinstance(model, nn.Sequential)
        return model[: batch[0]](batch[1]).pow(2).mean()

    inputs = torch.randn(4, 3)
    (_, both) = score_layers(model, [(2, inputs)], prefix).rows
    (_, half) = score_layers(model, [(2, inputs), (1, inputs)], prefix).rows
    assert half.value == pytest.approx(both.value / 2)
    assert half.value > 0


def test_layers_of_zeros_and_unused_layers() -> None:
    """Without a gradient a layer scores 0; with one but only zero weights, infinity."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    for p in model[1].parameters():
        nn.init.zeros_(p)

    def first_two(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, nn.Sequential)
        return model[1](model[0](batch)).mean()

    values = [row.value for row in score_layers(model, [torch.ones(2, 3)], first_two).rows]
    assert values == [0.0, math.inf, 0.0]


META = torch.device("meta")
GENERATOR: Iterator[Batch] = iter(())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: score_layers(Net(), data(), loss, method="gradient"),  # type: ignore[arg-type]
            r"^method='gradient' is unknown; there are 'relative_gradient_norm', 'snr', 'fisher'$",
        ),
        (
            lambda: score_layers(Net(), data(), method="fisher"),
            r"^method='fisher' needs data: score_layers\(model, batches, loss_fn, ...\); "
            r"only method='snr' does without$",
        ),
        (
            lambda: score_layers(Net(), data(), loss, method="snr"),
            r"^method='snr' reads the weights alone; leave out batches and loss_fn$",
        ),
        (
            lambda: score_layers(Net(), GENERATOR, loss),
            r"^batches is empty; what has been gone through once may give nothing more$",
        ),
        (
            lambda: score_layers(nn.ReLU(), data(), loss),
            r"^ReLU has no parameters, so there is nothing to score$",
        ),
        (
            lambda: score_layers(nn.Linear(3, 3, device=META), method="snr"),
            r"^'weight' is on the meta device, without values to score; load the weights first$",
        ),
        (
            lambda: score_layers(nn.LazyLinear(3), method="snr"),
            r"^'weight' has no shape yet; run one batch through the model first$",
        ),
        (
            lambda: score_layers(nn.LayerNorm(3), method="snr"),
            r"^method='snr' scores weight matrices, and no parameter has several rows and "
            r"columns; the first is 'weight'$",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(call: object, message: str) -> None:
    """Arguments that do not fit are an error that says what would."""
    assert callable(call)
    with pytest.raises(PlanError, match=message):
        call()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda model, batch: model(batch[0]),
            r"^loss_fn returned \[8, 2\] for batch 0; expected a tensor with one element, "
            r"e.g. loss.mean\(\)$",
        ),
        (
            lambda model, batch: 1.5,
            r"^loss_fn returned float for batch 0; expected a tensor with one element, "
            r"e.g. loss.mean\(\)$",
        ),
        (
            lambda model, batch: model(batch[0]).mean() * math.nan,
            r"^the loss of batch 0 is nan, without gradients$",
        ),
        (
            lambda model, batch: model(batch[0]).detach().mean(),
            r"^the loss of batch 0 does not depend on any parameter of Net; compute it from what "
            r"model\(...\) returns, without detach\(\) or no_grad\(\)$",
        ),
        (
            lambda model, batch: torch.ones(1, requires_grad=True).sum(),
            r"^the loss of batch 0 does not depend on any parameter of Net; compute it from what "
            r"model\(...\) returns, without detach\(\) or no_grad\(\)$",
        ),
        (
            lambda model, batch: (
                (model.head.bias - model.head.bias).norm() * 0
                + model.head.bias[0]
                + (model.head.bias[1] - model.head.bias[1]).sqrt()
            ),
            r"^the gradient of 'head.bias' in batch 0 is not finite; score in float32, or look "
            r"for the operation that overflows$",
        ),
    ],
)
def test_losses_without_a_gradient_are_refused(loss_fn: object, message: str) -> None:
    """The message names the batch and what to return instead."""
    with pytest.raises(FreezekitError, match=message):
        score_layers(Net(), data(), loss_fn)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_named() -> None:
    """A matrix with a nan has no singular values."""
    model = Net()
    model.blocks[1].out.weight.data[0, 0] = math.nan  # type: ignore[union-attr, index]
    expected = r"^the weights of 'blocks.1.out.weight' are not all finite$"
    with pytest.raises(FreezekitError, match=expected):
        score_layers(model, method="snr")


def test_the_best_that_fit_train() -> None:
    """From the best down; what does not fit is passed over for what does."""
    scores = rows(("a", None, 10, 0.1), ("b", None, 60, 0.9), ("c", None, 20, 0.5))
    assert chosen(scores, 0.6) == ("b",)
    assert chosen(scores, 0.7) == ("a", "b")
    assert chosen(scores, 0.3) == ("a", "c")
    assert chosen(scores, 1.0) == ("a", "b", "c")


def test_patterns_stand_from_input_to_output() -> None:
    """The rule lists what trains in the order of the model, not of the scores."""
    scores = rows(*((f"l{number}", None, 5, 1.0 * (number in (1, 8))) for number in range(20)))
    assert chosen(scores, 0.1) == ("l1", "l8")


def test_the_budget_is_exact() -> None:
    """29 of 100 elements are 0.29 of them, although 0.29 * 100 is less in floating point."""
    assert chosen(rows(("a", None, 29, 1.0)), 0.29) == ("a",)
    with pytest.raises(PlanError, match=r"; allow at least 0\.3$"):
        chosen(rows(("a", None, 30, 1.0)), 0.29999)


def test_ties_go_to_the_input() -> None:
    """Of equal scores the row nearer to the input trains."""
    scores = rows(("a", None, 10, 0.5), ("b", None, 10, 0.5), ("c", None, 10, 0.5))
    assert chosen(scores, 0.2) == ("a", "b")
    kinds = rows(("0.q", "q", 10, 0.5), ("0.k", "k", 10, 0.5), ("1.q", "q", 10, 0.5))
    assert chosen(kinds, 0.1) == ("0.q",)
    assert chosen(kinds, 0.2) == ("0.q", "0.k")


def test_kinds_are_ranked_among_themselves() -> None:
    """The best of each kind come before the second best of any, each round from the highest."""
    scores = rows(
        ("0.q", "q", 10, 9.0),
        ("0.k", "k", 10, 0.1),
        ("1.q", "q", 10, 8.0),
        ("1.k", "k", 10, 0.2),
        ("2.q", "q", 10, 10.0),
    )
    assert chosen(scores, 0.1) == ("2.q",)
    assert chosen(scores, 0.2) == ("1.k", "2.q")
    assert chosen(scores, 0.3) == ("0.q", "1.k", "2.q")
    assert chosen(scores, 0.4) == ("0.q", "0.k", "1.k", "2.q")


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf, True, None, "much"])
def test_shares_outside_the_range_are_refused(share: object) -> None:
    """The budget is a share of the model."""
    expected = r"is not a share in \(0, 1\] of the model's elements, e.g. 0.05$"
    with pytest.raises(PlanError, match=expected):
        to_plan(rows(("a", None, 1, 1.0)), train_at_most=share)  # type: ignore[arg-type]


def test_where_nothing_fits_the_smallest_row_is_named() -> None:
    """The message says how much the budget is, and how much the smallest row needs."""
    scores = rows(("a", None, 400, 1.0), ("b", None, 333, 2.0), numel=9_990)
    expected = (
        r"^train_at_most=0.02 is 199 of 9,990 elements, and the smallest row, 'b', has 333; "
        r"allow at least 0.0334$"
    )
    with pytest.raises(PlanError, match=expected):
        to_plan(scores, train_at_most=0.02)
    assert chosen(scores, 0.0334) == ("b",)


def test_scores_without_rows_or_order_are_refused() -> None:
    """What has no rank leads to no plan."""
    with pytest.raises(PlanError, match=r"^the scores have no rows, so there is nothing to train$"):
        to_plan(Scores("fisher", (), 10))
    expected = r"^the score of 'a' is not a number, so it has no rank$"
    with pytest.raises(PlanError, match=expected):
        to_plan(rows(("a", None, 1, math.nan)))


@pytest.mark.parametrize("method", ["relative_gradient_norm", "snr"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_plans_keep_to_the_budget_and_survive_a_file(
    tmp_path: Path, method: str, share: float
) -> None:
    """What trains is within the budget, and the plan is the same from a file."""
    torch.manual_seed(1)
    model = Net()
    given = () if method == "snr" else (data(), loss)
    scores = score_layers(model, *given, method=method)  # type: ignore[arg-type]
    plan = to_plan(scores, train_at_most=share)
    plan.save(tmp_path / "plan.yaml")
    assert FreezePlan.load(tmp_path / "plan.yaml") == plan
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trainable = plan.resolve(model).at().trainable
    assert 0 < sum(sizes[name] for name in trainable) <= share * sum(sizes.values())


ODD = ["a[0]", "a{b}", "a@b", "!a", "a*", "a?", "re:a", "a+b(c)", "**"]


@pytest.mark.parametrize("name", ODD)
def test_names_that_look_like_patterns_are_quoted(tmp_path: Path, name: str) -> None:
    """A plan selects the module and the parameter of that very name, also from a file."""
    model = nn.Sequential()
    for other in (name, "plain", f"{name}0"):
        model.add_module(other, nn.Linear(4, 4))
    model.register_parameter(f"{name}w", nn.Parameter(torch.randn(4, 4)))
    for scores in (
        score_layers(model, method="snr"),
        score_layers(model, [torch.ones(2, 4)], square),
    ):
        check_patterns(model, scores)
        plan = to_plan(scores, train_at_most=1.0)
        plan.save(tmp_path / "plan.yaml")
        assert FreezePlan.load(tmp_path / "plan.yaml") == plan


def test_a_model_that_is_one_layer_is_selected_whole() -> None:
    """The root has no name, and its pattern is everything."""
    model = nn.Linear(4, 3)
    scores = score_layers(model, method="snr")
    assert scores.rows[0].patterns == ("**",)
    assert to_plan(scores, train_at_most=1.0).resolve(model).at().frozen == frozenset()


def test_scores_are_plain_data_and_print_as_a_table() -> None:
    """They are equal by value, cannot be changed, rebuild from their repr and print in columns."""
    scores = rows(("stem", None, 1200, 0.5), ("blocks.0", None, 80, 0.0001234))
    assert eval(repr(scores)) == scores
    with pytest.raises(AttributeError):
        scores.rows[0].value = 1.0  # type: ignore[misc]
    assert str(scores).splitlines() == [
        "          elements    fisher",
        "stem         1,200       0.5",
        "blocks.0        80  0.000123",
    ]
