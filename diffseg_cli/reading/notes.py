"""What readers tell of a file that they could use: how it was understood, and what of it was left out.

A note calls its file by `InputFile.name`. Within `collected_notes` it is collected, for the same thread only;
elsewhere it is a Python warning, which the command line shows on stderr.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collected: ContextVar[list[str] | None] = ContextVar("diffseg_notes", default=None)


class MaskNote(UserWarning):
    """A mask was understood, in a way its owner may want to know of."""


def note(text: str) -> None:
    """Tell the user how a file was understood."""
    notes = _collected.get()
    if notes is None:
        warnings.warn(text, MaskNote, stacklevel=3)
    else:
        notes.append(text)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """A list that notes are added to within the `with` block, instead of warnings."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)
