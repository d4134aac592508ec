"""The exceptions that visgraft raises on purpose; each carries one message that a user can act on.

In: what was got, what is allowed, what to do, as one string. Out: an exception that the command line prints as a line.

    VisgraftError
      ConfigError               a recipe, an override or an argument is wrong
      DataError                 a data source cannot be read, or too much of it is bad
        BadSampleError          one sample is bad: it goes to quarantine, the run goes on
        TooManyBadError         more samples are bad than the recipe allows; every process of a run finds it alike
      ModelError                parts do not fit together
        UnsupportedModelError   a model that cannot be joined exactly, refused by name
        MaskSizeError           a dense attention mask would be larger than is allowed
        MissingNameError        a library's installed release lacks a name that this needs
        PreflightError          the check before training found a broken promise
      BusyError                 there is no room for another request now; later there may be
      CheckpointError           a run, checkpoint or model folder is missing, incomplete or does not match
      MissingAssetError         a file that must be downloaded, or found on disk, is not there
      DiskError                 the disk took no more: it is full, read-only or has no room for another file

Usage: `raise ConfigError("train.epochs: got 'many', need a number")`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VisgraftError(Exception):
    """Any error that visgraft raises on purpose; its text is meant for the user."""


class ConfigError(VisgraftError):
    """A recipe, an override or an argument is wrong."""


class DataError(VisgraftError):
    """A data source cannot be read, or more of it is bad than the recipe allows."""


class BadSampleError(DataError):
    """One sample cannot be used; the text is the reason that its quarantine line gives."""


class TooManyBadError(DataError):
    """More samples are bad than the recipe allows."""


class ModelError(VisgraftError):
    """Parts cannot be joined, or a model was called in a way that has no right answer."""


class UnsupportedModelError(ModelError):
    """A model class cannot follow the mask or the positions exactly, so it is refused by name."""


class MaskSizeError(ModelError):
    """A dense attention mask would take more memory than is allowed; training then halves its micro-batches."""


class MissingNameError(ModelError):
    """A library's installed release lacks a name that it never promised to keep, and that this needs."""


class PreflightError(ModelError):
    """The check on one real batch before training found something that would train wrongly."""


class BusyError(VisgraftError):
    """A request found no room: the queue is full, or memory does not suffice for it beside the others."""


class CheckpointError(VisgraftError):
    """A run, checkpoint or model folder is missing, incomplete, or does not match what loads it."""


class MissingAssetError(VisgraftError):
    """A file that must be downloaded, or found on disk, is not there."""


class DiskError(VisgraftError, OSError):
    """A disk took no more: it is full, read-only, or has no room for another file; nothing half written stays."""


@contextmanager
def names_needed_for(what: str) -> Iterator[None]:
    """Say what cannot be used where an import inside, of a name that a library does not promise to keep, fails.

    Raises:
        MissingNameError: with what needs the name, and what to do.
    """
    try:
        yield
    except ImportError as error:
        raise MissingNameError(
            f"{what}: needs a name that the installed release of a library does not have ({error}); install the "
            "releases that visgraft is tested with (docs/compatibility.md)"
        ) from error
