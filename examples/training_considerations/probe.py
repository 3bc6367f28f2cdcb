"""A head that is fitted to the end: what the features of a frozen backbone hold for a task."""

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

INVERSE_PENALTY = 100  # weak: the features of both cases are small


def fit_head(features: Tensor, labels: Tensor) -> nn.Linear:
    """Returns the head that a logistic regression finds.

    Args:
        features: what the head gets, (N, width).
        labels: the class of each row, from 0, (N,).
    """
    found = LogisticRegression(C=INVERSE_PENALTY, max_iter=10_000).fit(features, labels)
    weight, bias = (
        torch.tensor(each, dtype=torch.float32) for each in (found.coef_, found.intercept_)
    )
    if len(found.classes_) == 2:  # one row, which tells the second class from the first
        weight, bias = (torch.cat([-each / 2, each / 2]) for each in (weight, bias))
    head = nn.Linear(features.shape[1], len(found.classes_))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head
