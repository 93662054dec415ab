"""Errors that a user of the cost simulator can correct."""


class TargetError(ValueError):
    """A target file, a workload or an allocation is wrong; one line names the place, the value found and the value wanted."""
