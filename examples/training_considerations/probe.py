"""What the frozen features hold: a logistic regression on them, fitted to the end.

The strategies train a head for a fixed number of steps; this says how far a head gets that has all
the steps it needs. `python probe.py` prints accuracies in %, mean and standard deviation over the
seeds, for each case, distance and size.
"""

from collections.abc import Sequence
from statistics import mean, stdev

import torch
from digits import Digits
from sentences import Sentences
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from trial import Case, with_head


@torch.no_grad()
def probed(case: Case, distance: str, size: int, seeds: Sequence[int]) -> list[float]:
    """Returns the held-out accuracy of a fitted head, for each seed."""
    extractor = with_head(case.model(distance), nn.Identity()).eval()

    def features(inputs: Tensor) -> Tensor:
        return torch.cat([extractor(case.trim(each)) for each in inputs.split(64)])

    found = []
    for seed in seeds:
        split = case.data(distance, size, seed)
        head = LogisticRegression(C=100, max_iter=10_000)
        head.fit(features(split.inputs), split.labels)
        found.append(float(head.score(features(split.test_inputs), split.test_labels)))
    return found


def main() -> None:
    """Prints a line for each case, distance and size."""
    for case in (Digits(), Sentences()):
        for distance in case.distances:
            for size in case.sizes:
                found = [100 * each for each in probed(case, distance, size, case.seeds)]
                line = f"{case.name} {distance:6} {size:3}: {mean(found):5.1f} ± {stdev(found):.1f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
