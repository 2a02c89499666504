"""Small images with their masks for the grid, made once and kept on disk within a bound."""

import io

import cv2
import numpy as np
from PIL import Image

from diffseg_cli.labelling.disk_cache import DiskCache, name_of, stamp_of
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.results.palette import concept_color
from diffseg_cli.results.render import overlay

LONGEST = 256  # side in pixels
MOST_BYTES = 300_000_000  # about 20 000 of them


class Thumbnails:
    """The thumbnails of a project. Every method may be called from any thread.

    Args:
        project: whose images are shown.
        most_bytes: on disk.
    """

    def __init__(self, project: Project, most_bytes: int = MOST_BYTES) -> None:
        self._project = project
        self._cache = DiskCache(project.out / HIDDEN / "thumbnails", most_bytes)

    def get(self, key: str) -> bytes:
        """A JPEG of an image with its mask, made now or earlier.

        Raises:
            InputError: there is no such image, or it cannot be read.
        """
        image, mask = self._project.item(key).path, self._project.mask_path(key)
        name = f"{name_of(key, stamp_of(image), stamp_of(mask))}.jpg"
        content = self._cache.get(name)
        if content is None:
            content = self._draw(key)
            self._cache.put(name, content)
        return content

    def _draw(self, key: str) -> bytes:
        image = self._project.read(key)
        scale = min(1.0, LONGEST / max(image.shape[:2]))
        size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        small = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
        for index, mask in enumerate(self._project.masks(key) or []):
            shrunk = cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA) > 0.5
            small = overlay(small, shrunk, concept_color(index))
        stream = io.BytesIO()
        Image.fromarray(small).save(stream, "JPEG", quality=82)
        return stream.getvalue()
