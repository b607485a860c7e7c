"""Errors whose message is written for the user: what was found, where, and what to do."""


class DrosegError(Exception):
    """A problem the user can mend; the command line prints the message alone and ends with `exit_code`."""

    exit_code = 1


class InputError(DrosegError):
    """Nothing to work on, or a command that cannot be understood."""

    exit_code = 2


class DatalistError(DrosegError):
    """A datalist that cannot be read, or whose cases cannot be used."""


class BundleError(DrosegError):
    """A bundle or run folder that is missing, incomplete or does not fit."""


class WeightsError(DrosegError):
    """Weights that are missing or cannot be loaded."""

    exit_code = 3
