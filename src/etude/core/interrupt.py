"""The signal that a run was asked to stop and has saved itself."""


class Interrupted(Exception):  # noqa: N818 - it is no fault
    """The run was asked to stop, and has saved a checkpoint."""
