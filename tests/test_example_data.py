"""The example's sentences and settings: what is shipped, and what a user's own may be."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import make_data
from config import HERE, Config, UserError, load_config
from data import Row, load_rows, topics_of

SHIPPED = {
    split: [
        json.loads(line) for line in (HERE / "data" / f"{split}.jsonl").read_text().splitlines()
    ]
    for split in ("train", "test")
}
HEADER = "text,topic,sentiment\n"
GOOD = '{"text": "Fine.", "topic": "food", "sentiment": "positive"}\n'


def shipped(split: str, column: str) -> list[str]:
    """Returns one column of one shipped file."""
    return [row[column] for row in SHIPPED[split]]


def test_shipped_sentences_are_many_and_distinct() -> None:
    """At least 600 different sentences, at least 200 of them held out."""
    texts = shipped("train", "text") + shipped("test", "text")
    assert len(set(texts)) == len(texts) >= 600
    assert len(SHIPPED["test"]) >= 200


def test_train_and_test_share_no_template() -> None:
    """Every row names its template, and each template belongs to one split."""
    train, test = (set(shipped(split, "template")) for split in SHIPPED)
    assert train & test == set()
    assert min(len(train), len(test)) >= 40


def test_train_and_test_share_no_content_word() -> None:
    """Every word that both splits use is an article, pronoun, preposition or the like."""
    train, test = (set(re.findall("[a-z]+", str(shipped(s, "text")).lower())) for s in SHIPPED)
    function_words = set(" ".join(make_data.FUNCTION_WORDS.values()).split())
    assert train & test - function_words == set()
    assert min(len(train - function_words), len(test - function_words)) >= 200


def test_function_words_carry_no_content() -> None:
    """The listed function words are few, and no word of the lexicon's lists is one of them."""
    function_words = set(" ".join(make_data.FUNCTION_WORDS.values()).split())
    lexicon = yaml.safe_load((HERE / "data" / "lexicon.yaml").read_text())
    lists = [words for split in lexicon.values() for words in split["sentiment"].values()]
    lists += [topic["words"] for split in lexicon.values() for topic in split["topics"].values()]
    words = {word.lower() for slots in lists for slot in slots.values() for word in slot}
    assert words & function_words == set()
    assert len(function_words) < 100


@pytest.mark.parametrize("split", SHIPPED)
def test_labels_are_balanced(split: str) -> None:
    """Each topic and each sentiment within it is equally frequent, in each template too."""
    pairs = Counter(zip(shipped(split, "topic"), shipped(split, "sentiment"), strict=True))
    templates = Counter(zip(shipped(split, "template"), shipped(split, "sentiment"), strict=True))
    assert len(pairs) == 8
    assert len(set(pairs.values())) == 1
    assert len(set(templates.values())) == 1


def test_shipped_files_are_what_the_script_writes(tmp_path: Path) -> None:
    """`make_data.py` writes the shipped files again, byte for byte."""
    make_data.main(tmp_path)
    for split in SHIPPED:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (HERE / "data" / name).read_bytes()


def test_articles_fit_the_next_word() -> None:
    """No "a" stands before a vowel, and no "an" before a consonant."""
    texts = " ".join(shipped("train", "text") + shipped("test", "text"))
    assert re.findall(r"\b[Aa] [aeiou]\w+|\b[Aa]n [^aeiou]\w+", texts) == []


def test_csv_and_jsonl_read_alike(tmp_path: Path) -> None:
    """Both formats give the same rows, with quoted commas, line breaks, blank lines and a mark."""
    rows = [Row("Good, hot\nsoup", "food", "positive"), Row("Bad.", "sport", "negative")]
    (tmp_path / "own.csv").write_text(
        "\ufefftopic,sentiment,text,note\n"
        'food,positive,"Good, hot\nsoup",x\n\nsport,negative,Bad.,\n',
        encoding="utf-8",
    )
    lines = [json.dumps(row._asdict()) for row in rows]
    (tmp_path / "own.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    assert load_rows(tmp_path / "own.csv") == load_rows(tmp_path / "own.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "own.jsonl",
            GOOD + '{"text": "Fine.", "topic": "food", "sentiment": "neutral"}',
            "own.jsonl, line 2, column 'sentiment': found 'neutral'; "
            "expected one of 'negative', 'positive'",
        ),
        (
            "own.jsonl",
            GOOD + '{"text": "Fine.", "topic": "physics", "sentiment": "positive"}',
            "own.jsonl, line 2, column 'topic': found 'physics'; expected one of 'food', 'sport'",
        ),
        (
            "own.jsonl",
            '{"text": 7, "topic": "food", "sentiment": "positive"}',
            "own.jsonl, line 1, column 'text': found 7; expected a text that is not empty",
        ),
        (
            "own.jsonl",
            '{"text": "Fine.", "sentiment": "positive"}',
            "own.jsonl, line 1, column 'topic': missing; expected one of 'food', 'sport'",
        ),
        (
            "own.jsonl",
            GOOD + "\n{'text': 1}",
            "own.jsonl, line 3, character 2: Expecting property name enclosed in double quotes; "
            "expected one JSON object per line",
        ),
        ("own.jsonl", "[1]", "own.jsonl, line 1: found [1]; expected a JSON object"),
        ("own.jsonl", "null", "own.jsonl, line 1: found None; expected a JSON object"),
        ("own.jsonl", "\n", "own.jsonl: no rows found; expected rows of text, topic and sentiment"),
        ("own.csv", "", "own.csv: no rows found; expected rows of text, topic and sentiment"),
        (
            "own.csv",
            HEADER + '"Two\nlines",food,positive\n  ,food,positive\n',
            "own.csv, line 4, column 'text': found '  '; expected a text that is not empty",
        ),
        (
            "own.csv",
            HEADER + "Good, hot soup,food,positive\n",
            "own.csv, line 2: found 4 columns; expected 3: text, topic, sentiment "
            "(quote a text that holds a comma)",
        ),
        (
            "own.csv",
            "text,label\nFine.,food\n",
            "own.csv, line 2, column 'topic': missing; expected one of 'food', 'sport'",
        ),
        ("own.txt", "", "own.txt: the suffix is '.txt'; expected .jsonl or .csv"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    """A bad row is an error with the file, the line, the column and what was expected."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_rows(tmp_path / name, ["food", "sport"])
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A missing file, and one that is not UTF-8, is an error that names it."""
    (tmp_path / "own.csv").write_bytes(b"text\n\xff")
    for name, reason in (("own.csv", "'utf-8' codec can't decode"), ("none.csv", "No such file")):
        with pytest.raises(UserError, match=re.escape(f"cannot read the data {tmp_path / name}")):
            load_rows(tmp_path / name)
        with pytest.raises(UserError, match=reason):
            load_rows(tmp_path / name)


def test_one_topic_is_refused() -> None:
    """Training rows of a single topic leave nothing to classify."""
    with pytest.raises(
        UserError, match=r"own.csv, column 'topic': only 'food' found; expected two"
    ):
        topics_of([Row("Fine.", "food", "positive")], "own.csv")


def test_shipped_config_holds_the_defaults(tmp_path: Path) -> None:
    """`config.yaml` spells out what holds when a key, or every section, is left out."""
    (tmp_path / "empty.yaml").write_text("{}")
    assert load_config(HERE / "config.yaml") == load_config(tmp_path / "empty.yaml") == Config()


def test_config_paths_start_at_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in a config are seen from its folder, wherever the caller stands."""
    (tmp_path / "my.yaml").write_text("model: {name: ./minilm}\ndata: {train: a.csv, test: /b.csv}")
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "my.yaml")
    assert config.model.name == str(tmp_path / "minilm")
    assert (config.data.train, config.data.test) == (str(tmp_path / "a.csv"), "/b.csv")


def test_config_takes_every_spelling_of_a_number(tmp_path: Path) -> None:
    """`1e-5`, which YAML reads as text, and `1` are numbers where a number is due."""
    (tmp_path / "my.yaml").write_text("optimizer: {lr: 1e-5, head_lr: 1}")
    optimizer = load_config(tmp_path / "my.yaml").optimizer
    assert (optimizer.lr, optimizer.head_lr) == (1e-5, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "trainning: {}",
            ": unknown key 'trainning'; did you mean 'training'? "
            "The keys are model, training, optimizer, data",
        ),
        (
            "training: {freezemode: all}",
            ": training: unknown key 'freezemode'; did you mean 'freeze_mode'? "
            "The keys are freeze_mode, epochs, batch_size, max_length, seed",
        ),
        ("training: backbone", ": training: found 'backbone'; expected the keys freeze_mode"),
        ("", ": found None; expected the keys model, training, optimizer, data"),
        (
            "training: {freeze_mode: heads}",
            ": training.freeze_mode is 'heads'; expected one of all, backbone, cls_head, sent_head",
        ),
        ("model: {pooling: min}", ": model.pooling is 'min'; expected one of mean, cls, max"),
        ("model: {normalize: 1}", ": model.normalize is 1; expected true or false"),
        ("model: {name: 3}", ": model.name is 3; expected text"),
        ("training: {epochs: 0}", ": training.epochs is 0; expected a number from 1 up"),
        ("training: {epochs: 1.5}", ": training.epochs is 1.5; expected a whole number"),
        ("optimizer: {lr: fast}", ": optimizer.lr is 'fast'; expected a number"),
        ("optimizer: {lr: .nan}", ": optimizer.lr is nan; expected a number from 0 up"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, content: str, message: str) -> None:
    """A bad setting is an error with the file, the key, the value and what was expected."""
    path = tmp_path / "my.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_unreadable_configs_are_named(tmp_path: Path) -> None:
    """A missing file, and one that is not YAML, is an error that names it."""
    (tmp_path / "my.yaml").write_text("model: [")
    for name in ("my.yaml", "none.yaml"):
        with pytest.raises(UserError, match=re.escape(f"cannot read the config {tmp_path / name}")):
            load_config(tmp_path / name)
