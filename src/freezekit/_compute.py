"""What a plan computes on example inputs: a pass forward and backward for each phase."""

from ._execution import does_not_run, refuse_lazy
from ._frontier import Compute, PhaseCompute, Stop, Trap
from ._names import Tree, Walk
from ._resolved import ResolvedPlan
from ._sharding import is_sharded
from ._trace import Rehearsal, Setting, Trace, parameters_of
from .errors import FreezekitError

_FEW = 0.01
"""The largest share of all elements that a trap has."""

_MUCH = 0.1
"""The least share of full fine-tuning that a trap costs."""

_NEARLY = 0.99


def compute(resolved: ResolvedPlan, walked: Walk, inputs: object) -> Compute:
    """Returns what a plan computes on example inputs; see `FreezePlan.resolve`.

    Raises:
        PlanError: a parameter is lazy and has no shape yet.
        FreezekitError: the model is sharded, or does not run on the inputs.
    """
    model, parameters = walked.modules[0], [*parameters_of(walked)]
    refuse_lazy(model, parameters)
    if any(is_sharded(parameter) for parameter in parameters):
        raise FreezekitError(
            "example_inputs: the parameters are spread over several ranks, and one rank cannot "
            "run the model alone; resolve the plan with example_inputs before the model is sharded"
        )
    meta = any(parameter.is_meta for parameter in parameters)
    # What kernels of RNNs keep for themselves is not known without data.
    if meta or not walked.tree.recurrent:
        try:
            return _analysed(resolved, walked, inputs, fake=True)
        except Exception as error:
            if meta:
                raise does_not_run(model, error) from error
    # Some models read numbers out of their tensors, which those without data have not.
    try:
        return _analysed(resolved, walked, inputs, fake=False)
    except Exception as error:
        raise does_not_run(model, error) from error


def _analysed(resolved: ResolvedPlan, walked: Walk, inputs: object, *, fake: bool) -> Compute:
    return _Analysis(resolved, walked, Rehearsal(walked, inputs, fake=fake)).compute(fake=fake)


class _Analysis:
    """The passes over one model, each made once."""

    def __init__(self, resolved: ResolvedPlan, walked: Walk, rehearsal: Rehearsal) -> None:
        """Makes no pass yet."""
        self._resolved = resolved
        self._tree: Tree = walked.tree
        self._rehearsal = rehearsal
        self._traces: dict[Setting, Trace] = {}

    def compute(self, *, fake: bool) -> Compute:
        """Makes the passes."""
        tree = self._tree
        whole = Setting(
            frozenset(
                row
                for row, dtype in enumerate(tree.dtypes)
                if dtype.is_floating_point or dtype.is_complex
            ),
            frozenset(),
            frozenset(),
        )
        full = self._told(self._trace(whole))
        phases = [self._phase(phase.index, full) for phase in self._resolved.phases]
        seen = [*self._traces.values()]
        called = {row for trace in seen for row in trace.called}
        used = {row for trace in seen for row in (*trace.uses, *trace.reached)}
        return Compute(
            tuple(phases),
            full,
            frozenset(_path(tree, row) for row in called),
            frozenset(tree.names[row] for row in used),
            fake,
        )

    def _trace(self, setting: Setting) -> Trace:
        if setting not in self._traces:
            self._traces[setting] = self._rehearsal.run(setting)
        return self._traces[setting]

    def _phase(self, index: int, full: PhaseCompute) -> PhaseCompute:
        trace = self._trace(self._setting(index, frozenset()))
        here = self._told(trace)
        return here._replace(trap=self._trap(index, trace, here, full))

    def _setting(self, phase: int, frozen: frozenset[int]) -> Setting:
        """Returns how the model stands in a phase.

        Args:
            phase: its index.
            frozen: rows of parameters that are frozen as well.
        """
        resolved = self._resolved
        decisions = [outcome.decisions[phase] for outcome in resolved._outcomes]
        trains = {row for row, at in enumerate(resolved._outcome_ids) if decisions[at].trainable}
        held, kept = resolved._held(phase, frozen)
        modules = frozenset(row for row, is_held in enumerate(held) if is_held) - kept
        return Setting(frozenset(trains - frozen), modules, frozenset(kept))

    def _told(self, trace: Trace) -> PhaseCompute:
        """Returns what a pass showed, by name."""
        tree = self._tree
        names = tree.names
        return PhaseCompute(
            tuple(
                Stop(_path(tree, module), tuple(names[row] for row in rows))
                for module, rows in trace.stops
            ),
            tuple(_path(tree, row) for row in trace.frozen),
            frozenset(_path(tree, row) for row in trace.crossed),
            frozenset(names[row] for row in trace.reached),
            trace.forward,
            trace.backward,
            trace.saved,
        )

    def _trap(
        self, phase: int, trace: Trace, here: PhaseCompute, full: PhaseCompute
    ) -> Trap | None:
        """Returns the few parameters at the bottom, if freezing them too would save much."""
        layers = self._layers(trace)
        most = _FEW * sum(self._resolved._numel(row) for row in range(len(self._tree.names)))
        starts = [min(trace.uses.get(row, 0) for row in rows) for _, rows in layers]
        cuts, elements = [], 0
        for count in range(1, len(layers)):
            elements += sum(self._resolved._numel(row) for row in layers[count - 1][1])
            if elements <= most:
                cuts.append(count)
        if not cuts:
            return None
        best = max(starts[count] for count in cuts) - starts[0]
        cut = next(count for count in cuts if starts[count] - starts[0] >= _NEARLY * best)
        rows = sorted(row for _, listed in layers[:cut] for row in listed)
        without = self._trace(self._setting(phase, frozenset(rows)))
        flops = without.forward + without.backward
        saved = here.activation_bytes - without.saved
        if here.flops - flops < _MUCH * full.flops and saved < _MUCH * full.activation_bytes:
            return None
        order = [layer.name for layer in self._resolved.layers]
        names = [name for name, _ in layers[:cut]]
        span = order.index(layers[cut][0]) - order.index(names[0])
        return Trap(
            tuple(self._tree.names[row] for row in rows),
            sum(self._resolved._numel(row) for row in rows),
            tuple(names),
            2 * cut > span,
            flops,
            without.saved,
        )

    def _layers(self, trace: Trace) -> list[tuple[str, list[int]]]:
        """Returns the layers with what gets a gradient in each, in the order of execution."""
        row_of = self._resolved._row_of
        found = []
        for layer in self._resolved.layers:
            rows = [row_of[name] for name in layer.parameter_names if row_of[name] in trace.reached]
            if rows:
                found.append((layer.name, rows))
        return sorted(found, key=lambda each: min(trace.uses.get(row, 0) for row in each[1]))


def _path(tree: Tree, row: int) -> str:
    return tree.prefixes[row][:-1]
