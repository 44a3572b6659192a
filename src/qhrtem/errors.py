"""The error tree: every failure a user can meet, with the exit code it ends the program with.

A message names what is required (with its unit), what came, the likely cause and the remedy, in one line.
"""

from __future__ import annotations


class QhrtemError(Exception):
    """Base of all errors that the program explains to its user; `exit_code` is the process status."""

    exit_code = 1


class PlanError(QhrtemError):
    """The plan or the command line asks for something undefined or impossible."""

    exit_code = 2


class InputError(QhrtemError):
    """A file or an array given to the program cannot be used."""

    exit_code = 3


class QualityError(QhrtemError):
    """The work finished, but the model does not describe the image, so no numbers are claimed."""

    exit_code = 4


class ResourceError(QhrtemError):
    """Memory, disk or a device is missing or too small for what was asked."""

    exit_code = 5


class Interrupted(QhrtemError):
    """The run was stopped and can be resumed."""

    exit_code = 75


class InterruptedByUser(Interrupted):
    """The run was stopped from the keyboard and can be resumed."""

    exit_code = 130
