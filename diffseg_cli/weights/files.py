"""Find, check, read and write weight files: safetensors only, so that opening a file never runs code.

`python -m diffseg_cli.weights.files weights` refreshes the sizes and hashes in a folder's manifest. Nothing
here imports torch before tensors are asked for, so that `diffseg models` answers at once.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffseg_cli.errors import WeightsError
from diffseg_cli.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
HEADER_LIMIT = 16_000_000  # bytes; parsed JSON takes about 24 times as much, and real headers are far smaller
REFETCH = "Copy or download the file again, then run `diffseg models verify`."

# How other files begin that end up under a weights name, and what to say of them.
LOOKALIKES = (
    (b"PK\x03\x04", "a PyTorch (zip) file; opening those can run code, so it is refused"),
    (b"\x80", "a Python pickle; opening those can run code, so it is refused"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was never fetched"),
    (b"<", "a web page: the download went wrong"),
)
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")

Status = Literal["ok", "missing", "damaged", "unreadable", "unlisted"]


@dataclass(frozen=True)
class WeightsEntry:
    """What a manifest says about one file.

    Attributes:
        file: path below the weights folder, with forward slashes.
        sha256: of the whole file, in hex; "" while unknown.
        bytes: its size.
        source: where the numbers come from.
        licence: SPDX name.
        what: what the network is and does.
        trained_on: data it has seen.
    """

    file: str
    sha256: str = ""
    bytes: int = 0
    source: str = ""
    licence: str = ""
    what: str = ""
    trained_on: str = ""


@dataclass(frozen=True)
class Installed:
    """One weight file as found, or not found, on this machine."""

    entry: WeightsEntry
    status: Status
    root: Path

    @property
    def path(self) -> Path:
        return self.root / self.entry.file


# --- where weights are ---------------------------------------------------------------------------------


def weights_roots() -> list[Path]:
    """Folders that may hold weights, first one first, whether or not they exist.

    The folder named by DIFFSEG_WEIGHTS, what was installed with the package, `weights` of the clone the
    package runs from, `weights` of the working folder.

    Raises:
        WeightsError: DIFFSEG_WEIGHTS is set and is not a folder.
    """
    package = Path(__file__).resolve().parents[1]
    roots = [package / "_weights", Path.cwd() / "weights"]
    if (package.parent / "pyproject.toml").is_file():  # else the parent is site-packages: not our `weights`
        roots.insert(1, package.parent / "weights")
    if chosen := os.environ.get("DIFFSEG_WEIGHTS"):
        if not Path(chosen).is_dir():
            raise WeightsError(
                f"DIFFSEG_WEIGHTS names {chosen}, which is not a folder.",
                "Point it at a folder that holds compact/ and hed/, or unset it to use what is shipped.",
            )
        roots.insert(0, Path(chosen).resolve())
    return list(dict.fromkeys(roots))


def find_weights(relative: str) -> Path:
    """Path of a weight file such as "hed/hed_bsds500.safetensors", from the first folder that has it.

    Raises:
        WeightsError: no folder has it.
    """
    roots = weights_roots()
    for root in roots:
        if (root / relative).is_file():
            return root / relative
    raise WeightsError(
        f"{relative} was not found in {', '.join(str(root) for root in roots)}.",
        "Install diffseg again, or set DIFFSEG_WEIGHTS to the folder that holds it.",
    )


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- the manifest --------------------------------------------------------------------------------------


def read_manifest(root: Path) -> list[WeightsEntry]:
    """Entries of `root/manifest.json`; none if there is no manifest.

    Raises:
        WeightsError: the manifest is damaged or of a newer format.
    """
    path = root / MANIFEST
    if not path.is_file():
        return []
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != MANIFEST_FORMAT:
            raise WeightsError(
                f"{path} has format {manifest['format']}, and this diffseg reads {MANIFEST_FORMAT}.",
                "Update diffseg, or use the weights folder that came with it.",
            )
        entries = [WeightsEntry(**row) for row in manifest["files"]]
        for entry in entries:
            if not isinstance(entry.bytes, int) or Path(entry.file).is_absolute() or ".." in entry.file:
                raise ValueError(f"the entry {entry.file} is not one file below the folder")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise WeightsError(f"{path} is not a manifest of weights: {error}.", REFETCH) from error
    return entries


def verify(root: Path, *, quick: bool = False) -> list[tuple[WeightsEntry, Status]]:
    """Compare a weights folder with its manifest.

    Args:
        root: the folder.
        quick: compare sizes only; else hashes too.

    Returns:
        Every entry with its status, then every safetensors file the manifest does not list.
    """
    entries = read_manifest(root)
    listed = {entry.file for entry in entries}
    found = _weight_files(root)
    return [(entry, _status(root / entry.file, entry, quick)) for entry in entries] + [
        (WeightsEntry(name, bytes=(root / name).stat().st_size), "unlisted")
        for name in found
        if name not in listed
    ]


def survey(*, quick: bool = False) -> list[Installed]:
    """The files that `find_weights` would choose, each checked against the manifest of its own folder."""
    chosen: dict[str, Installed] = {}
    for root in weights_roots():
        for entry, status in verify(root, quick=quick):
            if entry.file not in chosen or chosen[entry.file].status == "missing" != status:
                chosen[entry.file] = Installed(entry, status, root)
    return [chosen[name] for name in sorted(chosen)]


def write_manifest(root: Path) -> list[WeightsEntry]:
    """Bring `root/manifest.json` up to date: sizes and hashes anew, new files with their texts left empty.

    Entries whose file is gone stay, for `verify` to name.
    """
    known = {entry.file: entry for entry in read_manifest(root)}
    known |= {name: WeightsEntry(name) for name in _weight_files(root) if name not in known}
    rows = []
    for name in sorted(known):
        row = asdict(known[name])
        if (root / name).is_file():
            row |= {"sha256": file_sha256(root / name), "bytes": (root / name).stat().st_size}
        rows.append(row)
    text = json.dumps({"format": MANIFEST_FORMAT, "files": rows}, indent=2, ensure_ascii=False) + "\n"
    write_whole(root / MANIFEST, text.encode())
    return [WeightsEntry(**row) for row in rows]


def _weight_files(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix() for path in root.glob("**/*.safetensors") if path.is_file()
    )


def _status(path: Path, entry: WeightsEntry, quick: bool) -> Status:
    try:
        if not path.is_file():
            return "missing"
        with path.open("rb") as stream:
            fits = os.fstat(stream.fileno()).st_size == entry.bytes
        return "ok" if fits and (quick or file_sha256(path) == entry.sha256) else "damaged"
    except OSError:  # a disk or a permission
        return "unreadable"


# --- safetensors ---------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Names and shapes of a safetensors file's tensors, and its metadata, without torch.

    Raises:
        WeightsError: the file is missing, of another length than its header says, damaged otherwise or no
            safetensors file; says what it is instead if it can.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            head, size = stream.read(64), path.stat().st_size
            length = int.from_bytes(head[:8], "little")
            if head[8:9] != b"{" or length > min(HEADER_LIMIT, size - 8):
                raise _refusal(path, head)
            stream.seek(8)
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        shapes = {name: tuple(int(size) for size in row["shape"]) for name, row in header.items()}
        "".join([*shapes, *metadata, *metadata.values()]).encode()  # all of it is text that can be shown
        end = max((row["data_offsets"][1] for row in header.values()), default=0)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: its header cannot be read.", REFETCH) from error
    if end != size - 8 - length:
        raise WeightsError(
            f"{path} is damaged: it has {size} bytes, and that is not the length its header tells.", REFETCH
        )
    return shapes, metadata


def read_safetensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors, on the CPU, and metadata of a safetensors file.

    Raises:
        WeightsError: as `read_header`, or the tensors are cut short.
    """
    path = Path(path)
    metadata = read_header(path)[1]  # first, for its plain reasons
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:  # torch, of shapes past 2**63
        raise WeightsError(f"{path} is damaged: {error}.", REFETCH) from error


def write_safetensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata; the same input gives the same bytes, and never half a file.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    raw = save(owned, dict(metadata))
    length = int.from_bytes(raw[:8], "little")
    # The library shuffles the metadata; a hash must be repeatable.
    header = json.loads(raw[8 : 8 + length]) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    write_whole(path, len(text).to_bytes(8, "little") + text + raw[8 + length :])


def tensors_digest(tensors: "Mapping[str, Tensor]") -> str:
    """Short hash of named tensors: their names, number formats, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_strict(module: "nn.Module", tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Copy tensors into a module that has exactly these parameters and buffers.

    Raises:
        WeightsError: some are missing, too many, or of another shape; names the first few.
    """
    wanted = module.state_dict()
    other_shape = [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    faults = [
        f"{reason} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for reason, names in (
            ("it lacks", sorted(wanted.keys() - tensors.keys())),
            ("it has too many:", sorted(tensors.keys() - wanted.keys())),
            ("another shape in", other_shape),
        )
        if names
    ]
    if faults:
        raise WeightsError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(faults)}.",
            "It belongs to another network or another version of diffseg.",
        )
    module.load_state_dict(dict(tensors))


def _refusal(path: Path, head: bytes) -> WeightsError:
    """Why a file that does not start like safetensors is refused."""
    kind = next((text for magic, text in LOOKALIKES if head.startswith(magic)), None)
    if kind is None and path.suffix.lower() in PICKLE_SUFFIXES:
        kind = "not a safetensors file, and diffseg never unpickles"
    if not head:
        kind = "empty"
    if kind is None:
        return WeightsError(f"{path} is damaged or is not a safetensors file.", REFETCH)
    hint = REFETCH
    if "code" in kind or "pickle" in kind:
        hint = "Where you trust it, load it and save its tensors with safetensors.torch.save_file."
    return WeightsError(f"{path} is {kind}.", hint)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m diffseg_cli.weights.files DIR    (refreshes DIR/manifest.json)")
    for line in write_manifest(Path(sys.argv[1])):
        present = (Path(sys.argv[1]) / line.file).is_file()
        empty = [name for name, value in asdict(line).items() if not value]
        note = f", still to fill in: {', '.join(empty)}" if empty else ""
        print(f"{line.file}: {f'{line.bytes} bytes{note}' if present else 'missing'}")
