"""The one exception of the package: an input that cannot be used, with what was expected, found, and what to do."""


class InputError(ValueError):
    """A mistake in what the user gave. The command line prints it without a traceback."""
