"""What annotation files hold, whatever their format: images, and objects that are marked in them.

Letters: H W size of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
HW = tuple[int, int]
Box = tuple[int, int, int, int]
CROWD = "a crowd"


class UnreadFormat(Exception):
    """A file is of a format that is known and not read, or not in this form.

    Args:
        what: it is, to follow "FILE is".
        hint: what to do instead.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Target:
    """The image an annotation file is read for.

    Attributes:
        name: its path, to find it among a file's images; None if it has none.
        size_hw: as it is shown; None if it is not known.
        orientation: of its EXIF block, 1 to 8.
    """

    name: str | None = None
    size_hw: HW | None = None
    orientation: int = 1

    @property
    def stored_hw(self) -> HW | None:
        """Its size before EXIF turns it."""
        return self.size_hw[::-1] if self.size_hw and self.orientation > 4 else self.size_hw


@dataclass(frozen=True)
class MarkedObject:
    """One object of an annotation file, not drawn yet.

    Attributes:
        id: what --annotation calls it.
        class_name: None where its class has a number only, or it has no class.
        class_id: the number of its class; None where there is none.
        draw: gives bool (H W) for a size; raises ValueError.
        lacks: why it has nothing to draw, such as "no outline"; "" where it has.
        dropped: which part of it cannot be drawn; "" where all can.
        ignored: why it is neither object nor background, such as "a crowd"; "" where it is an object.
        is_crowd: marked as one, which some tools do to objects.
        box: gives x, y, width, height in pixels, where the file has a box and no outline.
    """

    id: str
    class_name: str | None
    class_id: str | None
    draw: Callable[[HW], Bools]
    lacks: str = ""
    dropped: str = ""
    ignored: str = ""
    is_crowd: bool = False
    box: Callable[[HW], Box] | None = None

    @property
    def is_outlined(self) -> bool:
        """Whether it is an object that can be drawn."""
        return not (self.lacks or self.ignored or self.box)


@dataclass(frozen=True)
class AnnotatedImage:
    """What a file says of one image.

    Attributes:
        names: that the file has for it, with any folders; none in a file that is about one image.
        stated_hw: its size as the file gives it, unchecked.
        objects: reads them, in the order of the file.
        reach_hw: how far they reach, where they are in pixels of the image whatever size the file states.
    """

    names: tuple[str, ...]
    stated_hw: tuple[Any, Any]
    objects: Callable[[], list[MarkedObject]]
    reach_hw: tuple[float, float] | None = None


@dataclass(frozen=True)
class AnnotationFile:
    """A whole file.

    Attributes:
        kind: of the file, for messages.
        images: at least one.
        left_out: what of it was not used, for a note.
    """

    kind: str
    images: list[AnnotatedImage]
    left_out: list[str] = field(default_factory=list)
