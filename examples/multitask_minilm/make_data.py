"""Writes data/train.jsonl and data/test.jsonl from the templates and words of data/lexicon.yaml.

The seed is fixed, so the same files come out every time. Every template is filled equally often
with positive and with negative words: neither the template nor the topic tells the sentiment.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SEED = 2026
SENTENCES = {"train": 10, "test": 6}  # per template; half of them positive, half negative

# The words that carry grammar and no content. Any other word belongs to one split only.
FUNCTION_WORDS = {
    "articles": "a an the",
    "pronouns": "everyone her i it its me my our that their this us we what you",
    "prepositions": "about above after at behind beside between by during for from in inside into"
    " near of off on out over past through throughout to up with",
    "auxiliaries": "am are be been being can could did do does had has have is was were will would",
    "conjunctions": "and as because but how if or so than when whenever while",
    "quantifiers": "all any each enough every half more most one some",
}


def content_words(text: str) -> set[str]:
    """Returns the lower-cased alphabetic words of `text` that are not function words."""
    return set(re.findall(r"[a-z]+", text.lower())) - set(" ".join(FUNCTION_WORDS.values()).split())


class Words:
    """Draws from lists of words in shuffled rounds, so that all are used about equally often."""

    def __init__(self, seed: int) -> None:
        """Starts with no round begun."""
        self.rng = random.Random(seed)
        self.rounds: dict[int, list[str]] = {}

    def draw(self, words: list[str]) -> str:
        """Returns the next word of the current round of this very list."""
        left = self.rounds.setdefault(id(words), [])
        if not left:
            left.extend(self.rng.sample(words, len(words)))
        return left.pop()


def fill(template: str, slots: dict[str, list[str]], words: Words) -> str:
    """Returns `template` with every {slot} filled, and "a" turned into "an" before a vowel."""
    text = re.sub(r"{(\w+)}", lambda slot: words.draw(slots[slot[1]]), template)
    return re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", text)


def sentences(split: str, lexicon: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yields the rows of one split: text, topic, sentiment and the template the text came from."""
    words, seen = Words(SEED), set()
    for topic, entry in lexicon["topics"].items():
        for number, template in enumerate(entry["templates"], start=1):
            for sentiment, sentiment_words in lexicon["sentiment"].items():
                made = 0
                while made < SENTENCES[split] // 2:
                    text = fill(template, {**entry["words"], **sentiment_words}, words)
                    if text not in seen:
                        seen.add(text)
                        made += 1
                        name = f"{split}-{topic}-{number:02}"
                        labels = {"topic": topic, "sentiment": sentiment, "template": name}
                        yield {"text": text, **labels}


def main(folder: Path = HERE / "data") -> None:
    """Writes both files to `folder`."""
    lexicon = yaml.safe_load((HERE / "data" / "lexicon.yaml").read_text(encoding="utf-8"))
    for split in SENTENCES:
        rows = [json.dumps(row) for row in sentences(split, lexicon[split])]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{folder / split}.jsonl: {len(rows)} sentences")


if __name__ == "__main__":
    main()
