"""Where the files of Kandinsky 2.2 are, a folder or the Hugging Face cache, and how they get there. No torch.

Nothing here is fetched unless `pull_kandinsky` is called.
"""

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffseg_cli.errors import WeightsError

KANDINSKY = "kandinsky-2-2"
REPOSITORIES = {
    "decoder": "kandinsky-community/kandinsky-2-2-decoder",
    "prior": "kandinsky-community/kandinsky-2-2-prior",
}
PULL = f"diffseg models pull {KANDINSKY}"
BY_HAND = (
    f"fetch it with `{PULL}` where there is a network, copy decoder/ and prior/ of the two repositories into "
    "one folder, and name that folder with --model PATH"
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@dataclass(frozen=True)
class Component:
    """One subfolder of the two repositories.

    Attributes:
        name: of the subfolder.
        repository: "decoder" or "prior".
        config: name of its JSON file.
        weights: stem of its safetensors, or None for a component without.
    """

    name: str
    repository: str
    config: str
    weights: str | None = None


COMPONENTS = (
    Component("unet", "decoder", "config.json", "diffusion_pytorch_model"),
    Component("movq", "decoder", "config.json", "diffusion_pytorch_model"),
    Component("scheduler", "decoder", "scheduler_config.json"),
    Component("image_encoder", "prior", "config.json", "model"),
    Component("image_processor", "prior", "preprocessor_config.json"),
)


@dataclass(frozen=True)
class ComponentFiles:
    """The files of one component: its JSON and its safetensors, several when they are sharded."""

    config: Path
    weights: tuple[Path, ...]


def locate_kandinsky(source: str | Path = KANDINSKY) -> dict[str, ComponentFiles]:
    """The files of every component, by the component's name.

    Args:
        source: "kandinsky-2-2" for the Hugging Face cache (of several revisions the one pulled last), or a
            folder, which holds the components side by side, or those of each repository in `decoder/` and
            `prior/` or in `kandinsky-2-2-decoder/` and `kandinsky-2-2-prior/`.

    Raises:
        WeightsError: something is missing or cannot be read; names what and where it was looked for.
    """
    found, lacking = search_kandinsky(source)
    if lacking:
        place = str(_cache()) if str(source) == KANDINSKY else str(source)
        raise WeightsError(
            f"Kandinsky 2.2 is not complete in {place}: it lacks {', '.join(lacking)}.",
            f"Run `{PULL}`, or name a folder that holds it with --model PATH.",
        )
    return found


def search_kandinsky(source: str | Path = KANDINSKY) -> tuple[dict[str, ComponentFiles], list[str]]:
    """The files of every component as far as they are there, and the names of components or files missing.

    Raises:
        WeightsError: a folder may not be entered.
    """
    try:
        return _search(source)
    except OSError as error:
        raise WeightsError(
            f"{error.filename} cannot be read: {error.strerror}.",
            "Check who may read it, or let HF_HOME name a cache of your own.",
        ) from error


def _search(source: str | Path) -> tuple[dict[str, ComponentFiles], list[str]]:
    in_cache = str(source) == KANDINSKY
    found: dict[str, ComponentFiles] = {}
    lacking: list[str] = []
    for repository in REPOSITORIES:
        components = [component for component in COMPONENTS if component.repository == repository]
        folders = _snapshots(repository) if in_cache else _candidates(Path(source), repository)
        folder = min(folders, key=lambda folder: len(_lacking(folder, components)), default=None)
        lacking += _lacking(folder, components)
        if folder is not None:
            found |= {component.name: _files(folder, component) for component in components}
    return found, lacking


def pull_kandinsky(*, revision: str | None = None, variant: str | None = None) -> Path:
    """Fetch what diffseg needs of both repositories into the ordinary Hugging Face cache.

    Files that are there already are not fetched again; how much of a half-fetched one is kept is the
    library's business. Bars go to stderr.

    Args:
        revision: branch, tag or commit; default "main".
        variant: "fp16" takes half precision for every component that has it.

    Returns:
        Folder of the decoder in the cache; from now on this revision is the one that is loaded.

    Raises:
        WeightsError: offline, not on the hub, no such revision or variant, or no room.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    revision = revision or "main"
    try:
        wanted = {}
        for repository, address in REPOSITORIES.items():
            # One request, tried once: the listing calls try for 20 s before they say there is no network.
            files = HfApi().model_info(address, revision=revision).siblings or []
            wanted[repository] = _needed([file.rfilename for file in files], repository, variant)
        if variant and not any(f".{variant}" in name for names in wanted.values() for name in names):
            raise WeightsError(
                f"The hub has no {variant} files of Kandinsky 2.2 at {revision}.", f"Run `{PULL}` alone."
            )
        for repository, names in wanted.items():
            folder = snapshot_download(REPOSITORIES[repository], revision=revision, allow_patterns=names)
            os.utime(folder)  # the newest snapshot is the one `locate_kandinsky` takes
    # What the library's HTTP client raises is not an OSError in every version; a ValueError is an answer that
    # is no JSON, such as a hotel's login page.
    except (OSError, ValueError, errors.HTTPError) as error:
        raise _pull_error(error, revision) from error
    return locate_kandinsky()["unet"].config.parents[1]


def _needed(names: Sequence[str], repository: str, variant: str | None) -> list[str]:
    """Of a repository's files those that diffseg reads.

    Raises:
        WeightsError: a component is not there, or not as safetensors.
    """
    needed = []
    for component in COMPONENTS:
        if component.repository != repository:
            continue
        files = [f"{component.name}/{component.config}"]
        if component.weights is not None:
            stem, shard = f"{component.name}/{component.weights}", r"(-\d+-of-\d+)?"
            plain = re.compile(rf"{stem}{shard}\.safetensors(\.index\.json)?")
            mark = rf"\.{re.escape(variant or '')}"
            marked = re.compile(rf"{stem}({mark})?{shard}({mark})?\.safetensors(\.index{mark}\.json)?")
            special = [name for name in names if variant and f".{variant}" in name and marked.fullmatch(name)]
            found = special or [name for name in names if plain.fullmatch(name)]
            files += found or [f"{stem}.safetensors"]
        for name in files:
            if name not in names:
                raise WeightsError(
                    f"{REPOSITORIES[repository]} on the hub holds no {name}.", "Try another --revision."
                )
        needed += files
    return needed


def _pull_error(error: Exception, revision: str) -> WeightsError:
    """What went wrong with a download, in a user's words."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return WeightsError(
            "Kandinsky 2.2 cannot be fetched: HF_HUB_OFFLINE is set.", f"Unset it, or {BY_HAND}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(
            f"Kandinsky 2.2 has no revision '{revision}' in both repositories.",
            "Leave --revision out for main.",
        )
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return WeightsError(
            f"{error.filename or _cache()} cannot be written: {error.strerror}.",
            "Make room there, or let HF_HOME name another folder.",
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return WeightsError(
        f"Kandinsky 2.2 cannot be fetched from the Hugging Face hub: {reason}.",
        f"Check the network and run it again, what arrived is kept; or {BY_HAND}.",
    )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshots(repository: str) -> list[Path]:
    """Folders of a repository's revisions in the Hugging Face cache, newest first."""
    snapshots = _cache() / f"models--{REPOSITORIES[repository].replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return []
    return sorted(snapshots.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)


def _candidates(root: Path, repository: str) -> list[Path]:
    """Where below a user's folder the components of a repository may lie."""
    return [root, root / repository, root / REPOSITORIES[repository].split("/")[1]]


def _lacking(folder: Path | None, components: Sequence[Component]) -> list[str]:
    """Parts, or single files of components, that a folder does not have."""
    if folder is None:
        return [component.name for component in components]
    lacking = []
    for component in components:
        files = _files(folder, component)
        if not (folder / component.name).is_dir():
            lacking.append(component.name)
        elif not files.config.is_file():
            lacking.append(f"{component.name}/{component.config}")
        elif component.weights is not None and not files.weights:
            lacking.append(f"{component.name}/{component.weights}.safetensors")
    return lacking


def _files(folder: Path, component: Component) -> ComponentFiles:
    """Files of a component; without weights when they are not all there. Full precision goes before fp16."""
    home = folder / component.name
    weights: tuple[Path, ...] = ()
    for infix in ("", ".fp16") if component.weights is not None else ():
        whole = home / f"{component.weights}{infix}.safetensors"
        index = home / f"{component.weights}.safetensors.index{infix}.json"
        shards = (whole,) if whole.is_file() else _shards(index)
        if shards and all(path.is_file() for path in shards):
            weights = shards
            break
    return ComponentFiles(home / component.config, weights)


def _shards(index: Path) -> tuple[Path, ...]:
    """Files an index of shards names; none when it is missing or damaged."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return tuple(index.parent / Path(name).name for name in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
