"""Tables and plots from the results: `python report.py` rewrites those of the page.

A value is a mean over seeds; what follows the ± and the bars of the plots is one standard
deviation over the seeds.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cells import CASES, DISTANCES, Cell, Result, Results, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rule import Group, Rule, Verdict, always, divide, fit, judge
from strategy import SCRATCH, STRATEGIES

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "training-considerations.md"
PLOTS = PAGE.parent / "_static"
LOOK = {  # of each strategy: colour and marker
    "frozen": ("#000000", "s"),
    "top": ("#e69f00", "^"),
    "bottom": ("#8c564b", "v"),
    "gradual": ("#009e73", "D"),
    "lp_ft": ("#0072b2", "o"),
    "bitfit": ("#cc79a7", "P"),
    "discriminative": ("#56b4e9", "X"),
    "full": ("#d55e00", "*"),
    SCRATCH: ("#999999", "."),
}
