"""Small images with their masks for the grid, made once and kept on disk within a bound."""

import numpy as np

from diffseg_cli.labelling.disk_cache import DiskCache, name_of, stamp_of
from diffseg_cli.labelling.export import instances_of
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.results.palette import concept_color, overlay_instances
from diffseg_cli.results.render import jpeg_bytes, overlay, shrunk

LONGEST, QUALITY = 256, 82  # side in pixels; of the JPEG
NUMBERED = 0.01  # of a thumbnail: smaller instances show no number
MOST_BYTES = 300_000_000  # about 20 000 of them


class Thumbnails:
    """The thumbnails of a project, within a bound on disk. Every method may be called from any thread."""

    def __init__(self, project: Project, most_bytes: int = MOST_BYTES) -> None:
        self._project = project
        self._cache = DiskCache(project.out / HIDDEN / "thumbnails", most_bytes)

    def get(self, key: str) -> bytes:
        """A JPEG of an image with its mask, made now or earlier.

        Raises:
            InputError: there is no such image, or it cannot be read.
        """
        image, mask = self._project.item(key).path, self._project.mask_path(key)
        name = f"{name_of(key, stamp_of(image), stamp_of(mask), self._project.instances)}.jpg"
        content = self._cache.get(name)
        if content is None:
            content = self._draw(key)
            self._cache.put(name, content)
        return content

    def _draw(self, key: str) -> bytes:
        small = shrunk(self._project.read(key), LONGEST)
        masks = [shrunk(mask.astype(np.float32), LONGEST) > 0.5 for mask in self._project.masks(key) or []]
        if masks and self._project.instances:
            found = instances_of(self._project.classes, masks)
            readable = NUMBERED * small.shape[0] * small.shape[1]
            numbers = [str(each.id) if each.mask.sum() > readable else "" for each in found]
            small = overlay_instances(small, found, numbers)
        else:
            for index, mask in enumerate(masks):
                small = overlay(small, mask, concept_color(index))
        return jpeg_bytes(small, QUALITY)
