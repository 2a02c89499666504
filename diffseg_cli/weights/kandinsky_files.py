"""How Kandinsky 2.2's files are: complete, and as long as their headers say. No torch, no tensor is read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffseg_cli.errors import WeightsError
from diffseg_cli.weights.files import read_header
from diffseg_cli.weights.hub import COMPONENTS, KANDINSKY, PULL, ComponentFiles, search_kandinsky

Status = Literal["ok", "damaged", "unreadable", "incomplete", "not installed"]


@dataclass(frozen=True)
class KandinskyFiles:
    """What is there of Kandinsky 2.2, in a folder or the Hugging Face cache.

    Attributes:
        status: "unreadable" where the system refuses a file or folder, "damaged" where a file's JSON or
            header is none or its length is wrong, "incomplete" where a file is missing, "not installed" where
            all are.
        fault: what is wrong, or "".
        hint: what to do about it, or "".
        files: of each component found.
        bytes: of all its weights.
        parameters: of each component with weights, counted in the headers.
    """

    status: Status
    fault: str
    hint: str
    files: dict[str, ComponentFiles]
    bytes: int
    parameters: dict[str, int]


def examine_kandinsky(source: str | Path = KANDINSKY) -> KandinskyFiles:
    """Examine headers and lengths of all files; `weights.kandinsky.check_networks` compares more.

    Args:
        source: "kandinsky-2-2" for the Hugging Face cache, or a folder; see `locate_kandinsky`.
    """
    try:
        found, lacking = search_kandinsky(source)
    except WeightsError as error:
        return KandinskyFiles("unreadable", error.message, error.hint or "", {}, 0, {})
    size, parameters, faults = 0, {}, []
    for name, component in found.items():
        try:
            if component.config.is_file():
                read_config(component.config)
            shapes = [shape for path in component.weights for shape in read_header(path)[0].values()]
        except WeightsError as error:
            faults.append(error)
            continue
        if component.weights:
            parameters[name] = sum(math.prod(shape) for shape in shapes)
            size += sum(path.stat().st_size for path in component.weights)
    if len(lacking) == len(COMPONENTS) and not any(each.config.is_file() for each in found.values()):
        return KandinskyFiles("not installed", "", f"Fetch it with `{PULL}`.", {}, 0, {})
    if faults:
        status: Status = "unreadable" if isinstance(faults[0].__cause__, OSError) else "damaged"
        return KandinskyFiles(status, faults[0].message, faults[0].hint or "", found, size, parameters)
    if lacking:
        fault = f"it lacks {', '.join(lacking)}"
        return KandinskyFiles("incomplete", fault, f"Fetch it with `{PULL}`.", found, size, parameters)
    return KandinskyFiles("ok", "", "", found, size, parameters)


def read_config(path: Path) -> dict[str, object]:
    """A component's JSON.

    Raises:
        WeightsError: it cannot be read, or holds no JSON object.
    """
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {error}.", f"Copy it again, or run `{PULL}`.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is damaged: it holds no JSON object.", f"Copy it again, or run `{PULL}`.")
    return config
