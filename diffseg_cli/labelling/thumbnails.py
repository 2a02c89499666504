"""Small images with their masks for the grid, made once and kept on disk within a bound."""

import hashlib
import io
import threading
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from diffseg_cli.files import write_whole
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.results.palette import concept_color
from diffseg_cli.results.render import overlay

LONGEST = 256  # side in pixels
MOST_BYTES = 300_000_000  # about 20 000 of them
KEPT_SHARE = 0.8  # of the bound that is left when the oldest are removed


class Thumbnails:
    """The thumbnails of a project. Every method may be called from any thread.

    Args:
        project: whose images are shown.
        most_bytes: on disk.
    """

    def __init__(self, project: Project, most_bytes: int = MOST_BYTES) -> None:
        self._project, self._most_bytes = project, most_bytes
        self._folder = project.out / HIDDEN / "thumbnails"
        self._lock = threading.Lock()
        self._bytes = sum(path.stat().st_size for path in self._folder.glob("*.jpg"))

    def get(self, key: str) -> bytes:
        """A JPEG of an image with its mask, made now or earlier.

        Raises:
            InputError: there is no such image, or it cannot be read.
        """
        item, mask = self._project.item(key), self._project.mask_path(key)
        stamps = [_stamp(item.path), _stamp(mask)]
        name = hashlib.sha256(f"{key}\0{stamps}".encode("utf-8", "surrogateescape")).hexdigest()[:40]
        path = self._folder / f"{name}.jpg"
        with suppress(OSError):
            return path.read_bytes()
        content = self._draw(key, item.path)
        write_whole(path, content)
        with self._lock:
            self._bytes += len(content)
            if self._bytes > self._most_bytes:
                self._remove_oldest()
        return content

    def _draw(self, key: str, path: Path) -> bytes:
        image = read_image(path)
        scale = min(1.0, LONGEST / max(image.shape[:2]))
        size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        small = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
        for index, mask in enumerate(self._project.masks(key) or []):
            shrunk = cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA) > 0.5
            small = overlay(small, shrunk, concept_color(index))
        stream = io.BytesIO()
        Image.fromarray(small).save(stream, "JPEG", quality=82)
        return stream.getvalue()

    def _remove_oldest(self) -> None:
        with suppress(OSError):
            for path in sorted(self._folder.glob("*.jpg"), key=lambda each: each.stat().st_mtime):
                if self._bytes <= KEPT_SHARE * self._most_bytes:
                    return
                self._bytes -= path.stat().st_size
                path.unlink()


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with the content of a file."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
