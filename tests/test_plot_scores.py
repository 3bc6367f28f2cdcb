"""The picture of scores, judged through the renderer."""

import math

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from pictures import HATCHED, boxes, check_texts, grey, labels, render, texts, touching

from freezekit.plot import scores
from freezekit.scoring import Score, Scores

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def layer_scores(*values: float) -> Scores:
    """Returns a stem and blocks with these scores."""
    names = ("stem", *(f"model.encoder.layer.{number}" for number in range(len(values) - 1)))
    rows = (Score(name, None, (name,), 1, value) for name, value in zip(names, values, strict=True))
    return Scores("relative_gradient_norm", tuple(rows), len(values))


def kind_scores(count: int, kinds: tuple[str, ...] = KINDS) -> Scores:
    """Returns scores of matrices in blocks, with an embedding before them; block 1 has one less."""
    rows = [Score("embed", "embed", ("embed",), 1, 9.0)]
    for number in range(count):
        for place, kind in enumerate(kinds[: -1 if number == 1 else None]):
            name = f"layers.{number}.{kind}"
            rows.append(Score(name, kind, (name,), 1, 0.1 * (number + 1) * (place + 1)))
    return Scores("snr", tuple(rows), len(rows))


SCORES = {
    "six": layer_scores(*(0.5 + place for place in range(6))),
    "forty_eight": layer_scores(*(10.0 ** -(place % 5) for place in range(48))),
    "thousand": layer_scores(*(1.0 + place for place in range(999)), math.inf),
    "three": layer_scores(0.5, 0.25, 1.0),
    "fourteen": layer_scores(*(10.0**-place for place in range(14))),
    "extremes": layer_scores(0.0, 1e-4, math.inf, 0.3),
    "all_zero": layer_scores(0.0, 0.0),
    "all_infinite": layer_scores(math.inf, math.inf),
    "two_hundred": layer_scores(*(1.0 + place for place in range(200))),
    "four_blocks": kind_scores(4),
    "hundred_blocks": kind_scores(100),
    "experts": kind_scores(5, tuple(f"mlp.experts.{number}.up" for number in range(64))),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_texts_are_whole_and_apart(name: str) -> None:
    """No text touches another, all lie in the figure, and none is below 6 points."""
    check_texts(scores(SCORES[name]))


@pytest.mark.parametrize("name", ["fourteen", "thousand", "four_blocks", "hundred_blocks"])
@pytest.mark.parametrize("size", [(6.4, 4.8), (12.0, 3.0)])
def test_scores_fit_given_axes(name: str, size: tuple[float, float]) -> None:
    """In axes of any height no two texts intersect, and nothing else in the figure changes."""
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.add_subplot()
    assert scores(SCORES[name], ax) is ax
    assert figure.axes == [ax]
    assert touching(texts(ax, render(ax))) == []


def test_scores_of_layers_are_bars_from_the_input_down() -> None:
    """Each bar ends at its score, the number beside it, on a linear scale if they are close."""
    ax = scores(SCORES["three"])
    assert labels(ax) == ["stem", "model.encoder.layer.0", "model.encoder.layer.1"]
    assert [box.x1 for box in boxes(ax)] == [0.5, 0.25, 1.0]
    assert [box.row for box in boxes(ax)] == [0, 1, 2]
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_xscale() == "linear"
    assert [text.get_text() for text in ax.texts] == ["0.5", "0.25", "1"]
    assert ax.get_xlabel() == "gradient norm / weight norm"
    assert ax.get_title(loc="left") == "relative_gradient_norm"


def test_scores_far_apart_are_on_a_log_scale() -> None:
    """Zero has no bar there, infinity one to the end, hatched; both have their numbers."""
    ax = scores(SCORES["extremes"])
    assert ax.get_xscale() == "log"
    ends = [box.x1 for box in boxes(ax)]
    assert ends[1:] == pytest.approx([1e-4, 0.3, 0.3])
    assert [box.x1 > box.x0 for box in boxes(ax)] == [False, True, True, True]
    assert [box.hatch for box in boxes(ax)] == ["", "", "//", ""]
    assert [text.get_text() for text in ax.texts] == ["0", "0.0001", "inf", "0.3"]
    assert ax.get_xlabel() == "gradient norm / weight norm (log scale)"


@pytest.mark.parametrize("count", [200, 400])
def test_many_scores_keep_their_rows_and_lose_labels(count: int) -> None:
    """Hundreds of bars of about 4 pixels or more, some with their names and none with a number."""
    ax = scores(layer_scores(*(1.0 + place for place in range(count))))
    render(ax)
    assert len(boxes(ax)) == count
    assert min(box.height for box in boxes(ax)) > 3.8
    assert count / 4 <= len(labels(ax)) <= count / 2
    assert len(ax.texts) == 0


def test_scores_of_kinds_are_shades_by_column() -> None:
    """A row for each block, a column for each kind, the best of each column at full shade."""
    ax = scores(SCORES["four_blocks"])
    assert labels(ax) == ["embed", "layers.0", "layers.1", "layers.2", "layers.3"]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(KINDS)
    (image,) = ax.images
    shades = image.get_array()
    assert shades is not None
    assert [round(float(shades[row, 0]), 3) for row in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
    assert shades.mask[0].all()
    assert shades.mask[2].tolist() == [False, False, False, True]
    numbers = [text.get_text() for text in ax.texts]
    assert numbers[:5] == ["9", "0.1", "0.2", "0.3", "0.4"]
    assert len(numbers) == 16


def test_kinds_that_no_other_block_has_are_bars() -> None:
    """Where nothing can be compared by column the rows are bars."""
    rows = (Score("a.fc", "fc", ("a",), 1, 0.5), Score("b", "b", ("b",), 1, 0.2))
    ax = scores(Scores("snr", rows, 2))
    assert labels(ax) == ["a.fc", "b"]
    assert len(boxes(ax)) == 2
    ax = scores(kind_scores(3, KINDS[:1]))
    assert labels(ax) == ["embed", "layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"]
    assert len(boxes(ax)) == 3


def test_only_scores_with_rows_are_drawn() -> None:
    """Other objects are named by their type, and a picture has at least one row."""
    expected = r"^scores\(\) draws what score_layers\(\) returns, not list$"
    with pytest.raises(TypeError, match=expected):
        scores([])  # type: ignore[arg-type]
    expected = r"^a picture has at least one row, and these scores have none$"
    with pytest.raises(ValueError, match=expected):
        scores(Scores("snr", (), 1))


@pytest.mark.parametrize("name", ["fourteen", "four_blocks"])
def test_scores_leave_settings_alone(name: str) -> None:
    """Drawing changes no matplotlib setting, also under a user's own style."""
    with mpl.rc_context({"hatch.linewidth": 3.0, "axes.grid": True, "font.size": 20}):
        before = dict(mpl.rcParams)
        ax = scores(SCORES[name])
        shown = texts(ax, render(ax))
        assert dict(mpl.rcParams) == before
    assert touching(shown) == []


@pytest.mark.parametrize("name", ["six", "extremes", "forty_eight", "thousand"])
def test_only_bars_with_room_have_a_hatch(name: str) -> None:
    """A hatch is 8 pixels high; an infinite bar without one is still darker than the others."""
    ax = scores(SCORES[name])
    render(ax)
    assert min([box.height for box in boxes(ax) if box.hatch], default=HATCHED) >= HATCHED
    dark = {grey(box.face) for box in boxes(ax) if box.what == "infinite"}
    light = {grey(box.face) for box in boxes(ax) if box.what == "score"}
    assert not dark or min(light) - max(dark) > 20
