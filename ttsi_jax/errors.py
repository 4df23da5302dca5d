# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Errors that a person can act on; the command line turns each into one message and an exit code."""


class InputError(ValueError):
    """Bad arguments, a bad task file or a run directory that cannot be used (exit code 2)."""


class ModelFileError(ValueError):
    """A model file that is missing, damaged or not supported (exit code 3)."""
