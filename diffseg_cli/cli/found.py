"""What verbs say of an image on stderr: one line, and notes of doubt."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffseg_cli.cli import console


def say_found(image: str, record: Mapping[str, Any], notes: Iterable[str]) -> None:
    """Name, presence, share and regions of each concept, of a `finding.scene_record`, and notes of doubt."""
    console.say(f"{image}: {'; '.join(_line(concept) for concept in record['concepts'])}")
    for note in notes:
        console.note(f"{image}: {note}.")


def _line(concept: Mapping[str, Any]) -> str:
    presence = "" if concept["presence"] is None else f", presence {concept['presence']:.2f}"
    what, number = ("instance", concept["count"]) if "count" in concept else ("region", concept["regions"])
    parts = f"{number} {what}{'' if number == 1 else 's'}"
    return f"{concept['name']}{presence}, {concept['mask_area']:.1%} of the image, {parts}"
