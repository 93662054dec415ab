"""The errors a user of the cost simulator can mend."""


class TargetError(ValueError):
    """A target file, a workload or an allocation is wrong.

    One line that names the file or the layer, the field, what was found and what is wanted.
    """
