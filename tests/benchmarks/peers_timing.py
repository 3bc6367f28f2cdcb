"""How two things are measured side by side: call by call, or batch by batch within long calls."""

import gc
from collections.abc import Callable
from statistics import median
from threading import Semaphore, Thread
from time import process_time
from typing import Any, NamedTuple

import torch

Show = Callable[[str], None]


class Rounds:
    """The processor time of several things, round by round."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, float]] = []

    def add(self, spent: dict[str, float]) -> None:
        """Adds a round."""
        self._rounds.append(spent)

    def ratio(self, one: str, other: str) -> float:
        """Returns how long one takes beside another: the median of the rounds."""
        return median(each[one] / each[other] for each in self._rounds)


class Work(NamedTuple):
    """Something to measure, and what undoes it afterwards, which is not measured."""

    does: Callable[[], Any]
    undoes: Callable[[], Any] = lambda: None


def in_turn(works: dict[str, Work], rounds: int, show: Show, *, collects: bool = True) -> Rounds:
    """Measures each thing once a round, after a round that is not counted."""
    found, names = Rounds(), [*works]
    for number in range(rounds + 1):
        spent = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if collects:
                gc.collect()
            start = process_time()
            works[name].does()
            spent[name] = process_time() - start
            works[name].undoes()
        if number:
            found.add(spent)
        show("round")
    return found


class Turn:
    """A long call that rests after each batch, in a thread that works while others rest.

    Attributes:
        seconds: the processor time it took so far.
        result: what the call returned.
    """

    def __init__(self, call: Callable[[Callable[[], None]], Any]) -> None:
        """Begins a call, which gets the function by which it rests."""
        self.seconds = 0.0
        self.result: Any = None
        self._error: BaseException | None = None
        self._random = torch.Generator().manual_seed(0).get_state()
        self._goes, self._rested = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def goes_on(self) -> bool:
        """Goes on to the next rest, with its own random numbers; returns whether there is more."""
        if not self._thread.is_alive():
            return False
        torch.set_rng_state(self._random)
        start = process_time()
        self._goes.release()
        self._rested.acquire()
        self.seconds += process_time() - start
        self._random = torch.get_rng_state()
        if self._error is not None:
            raise self._error
        return True

    def _run(self, call: Callable[[Callable[[], None]], Any]) -> None:
        self._goes.acquire()
        torch.set_num_threads(1)  # what the main thread set is not for others
        try:
            self.result = call(self._rests)
        except BaseException as error:  # raised in the main thread
            self._error = error
        self._rested.release()

    def _rests(self) -> None:
        self._rested.release()
        self._goes.acquire()
