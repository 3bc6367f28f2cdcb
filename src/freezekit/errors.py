"""The exceptions freezekit raises."""


class FreezekitError(Exception):
    """Base of every error raised by freezekit.

    Example:
        >>> from freezekit import FreezekitError, PatternError, PlanError
        >>> issubclass(PatternError, PlanError) and issubclass(PlanError, FreezekitError)
        True
    """


class PlanError(FreezekitError, ValueError):
    """A plan, a rule or a plan file that cannot mean anything, or not for this model.

    Example:
        >>> from freezekit import FreezePlan, PlanError
        >>> try:
        ...     FreezePlan().group("head", lr=0)
        ... except PlanError as error:
        ...     print(str(error)[-26:])
        use freeze('head') instead
    """


class PatternError(PlanError):
    """A pattern with a syntax error, or one that selects nothing in the model.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan, PatternError
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> try:
        ...     FreezePlan().freeze("[0-3]").apply(model)
        ... except PatternError as error:
        ...     print("{0..3}" in str(error))
        True
    """


class FrozenChangedError(FreezekitError):
    """What was frozen throughout a guarded block has changed.

    Attributes:
        names: every tensor that changed, in the order of the model.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan, FrozenChangedError
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> applied = FreezePlan().freeze("[0]").apply(model)
        >>> try:
        ...     with applied.guard():
        ...         _ = model[0].weight.data.mul_(2)
        ... except FrozenChangedError as error:
        ...     print(error.names)
        ('0.weight',)
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        """Says what changed, and names it."""
        super().__init__(message)
        self.names = names
