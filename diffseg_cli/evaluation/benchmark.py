"""A whole evaluation: data sets by fold, the list of episodes, the model, its peers and the record."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffseg_cli.assembly import load_chosen
from diffseg_cli.choices.evaluation import EvaluationPlan
from diffseg_cli.config import AdaptConfig
from diffseg_cli.datasets import PROTOCOLS, load_dataset
from diffseg_cli.datasets.episode import FewShotDataset
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.evaluation.episode_list import Task, draw_tasks, find_tasks, list_hash, list_lines, read_list
from diffseg_cli.evaluation.evaluate import (
    ADAPTED,
    OWN_METHODS,
    PROTOTYPE_ADAPTED,
    ZOOM,
    Evaluation,
    Illustration,
    own_thresholds,
)
from diffseg_cli.evaluation.peers import NOTES, PEERS, load_peer
from diffseg_cli.evaluation.published import FIGURES, TRAINED, TRAINING_FREE, published_figures
from diffseg_cli.evaluation.summary import (
    EpisodeResult,
    summarise,
    summarise_adaptations,
    summarise_costs,
    summarise_shares,
)
from diffseg_cli.evaluation.sweep import choose_axes, settings_of, summarise_sweep
from diffseg_cli.segmenter import Segmenter

SHIPPED = (
    "The shipped modules were trained on classes of PASCAL VOC and COCO, test classes of this data set among "
    "them: the model's figure is not a few-shot figure of this protocol and stands beside no published one. "
    "Train on the other classes and give --checkpoint."
)
OWN_CHECKPOINT = (
    "The model's figure compares with published ones only if its checkpoint was trained without the test "
    "classes."
)


def choose_folds(dataset: str, fold: str | None) -> tuple[int | None, ...]:
    """Folds of a data set from what the user said: "0" to "3", "all" or nothing.

    Raises:
        UsageError: the data set does not have it.
    """
    count = PROTOCOLS[dataset].folds
    if not count:
        if fold is not None:
            raise UsageError(f"{dataset} has no folds.", "Leave --fold out.")
        return (None,)
    if fold in (None, "all"):
        return tuple(range(count))
    if fold not in map(str, range(count)):
        raise UsageError(f"There is no fold '{fold}'.", f"Use 0 to {count - 1}, or all.")
    return (int(str(fold)),)


def check_peers(names: Sequence[str]) -> tuple[str, ...]:
    """Peers a user named, each once.

    Raises:
        UsageError: an unknown one.
    """
    known = (*OWN_METHODS[1:], *PEERS)
    for name in names:
        if name not in known:
            raise UsageError(f"Unknown peer '{name}'.", f"Use {', '.join(known)}.")
    return tuple(dict.fromkeys(names))


class Benchmark:
    """An evaluation ready to run: its model, data sets and list of episodes.

    Raises:
        InputError: data or the list of episodes are missing or wrong.
        WeightsError: the model's or a peer's weights are missing.
        UsageError: options that contradict each other.
    """

    def __init__(self, plan: EvaluationPlan) -> None:
        self.plan = plan
        self.folds = choose_folds(plan.dataset, plan.fold)
        self.episodes_per_class = plan.episodes_per_class or PROTOCOLS[plan.dataset].episodes_per_class
        peers, axes = check_peers(plan.peers), choose_axes(plan.sweep, plan.model.model)
        self._datasets: dict[int | None, FewShotDataset] = {}
        self._evaluation: tuple[int | None, Evaluation] | None = None
        if plan.episodes_in:
            self.tasks = self._read_tasks(plan.episodes_in)
        else:
            self.tasks = draw_tasks(
                {fold: self.dataset(fold) for fold in self.folds},
                shots=plan.shots,
                seed=plan.seed,
                runs=plan.runs,
                episodes_per_class=self.episodes_per_class,
                queries_per_set=plan.queries_per_set,
            )
        self.lines = list_lines(self.tasks, self._datasets)
        self.segmenter: Segmenter = load_chosen(plan.model)
        self.settings = settings_of(self.segmenter, axes)
        ours = {ADAPTED: plan.adapt, ZOOM: plan.zoom != "off"}
        asked = [method for method, wanted in ours.items() if wanted]
        self.methods = ("model", *asked, *self.settings, *peers)
        windows = {ZOOM, "slicing"} & {*self.methods}
        self.segmenter.check_presence(0.0, "1" if windows else "off")
        self.peers = {
            name: load_peer(name, plan.peer_weights, self.segmenter.device) for name in peers if name in PEERS
        }

    def dataset(self, fold: int | None) -> FewShotDataset:
        """The data set of a fold, read once."""
        if fold not in self._datasets:
            plan = self.plan
            self._datasets[fold] = load_dataset(
                plan.dataset, plan.root, fold=fold, split=plan.split, sources=plan.sources or ()
            )
        return self._datasets[fold]

    def about(self) -> dict[str, Any]:
        """What the list of episodes is of, for its first line."""
        plan = self.plan
        return {
            "dataset": plan.dataset,
            "split": plan.split or next(iter(PROTOCOLS[plan.dataset].splits), None),
            "sources": list(plan.sources or ()),
            "shots": plan.shots,
            "seed": plan.seed,
            "runs": plan.runs,
            "queries_per_set": plan.queries_per_set,
            "episodes_sha256": list_hash(self.lines),
        }

    def key(self) -> dict[str, Any]:
        """Everything that decides an episode's counts; a stopped run goes on only where all of it agrees."""
        return {
            **self.about(),
            **self.segmenter.record(),
            "trained": self.segmenter.trained.digest,  # and not which file it was read from
            "digest": self.segmenter.digest,
            "device": self.segmenter.device.type,
            "methods": list(self.methods),
            "thresholds": self._thresholds(),
            "adapt": asdict(AdaptConfig()) if {ADAPTED, PROTOTYPE_ADAPTED} & {*self.methods} else None,
            **({"zoom": self.plan.zoom} if self.plan.zoom != "off" else {}),
            **({"paste_into": self.plan.paste_into} if self.plan.paste_into else {}),
        }

    def measure(self, task: Task) -> EpisodeResult:
        """Run one episode in this process."""
        return self._evaluation_of(task.fold).measure(task.index, task.episode, run=task.run, fold=task.fold)

    def illustrate(self, result: EpisodeResult) -> Illustration:
        """Run one episode again for its images."""
        [task] = [task for task in self.tasks if task.place == result.place]
        return self._evaluation_of(task.fold).illustrate(task.index, task.episode, run=task.run)

    def record(self, results: Sequence[EpisodeResult]) -> dict[str, Any]:
        """Figures and everything needed to repeat them, as plain values for JSON."""
        plan = self.plan
        fold = self.folds[0] if len(self.folds) == 1 else None
        split = str(self.about()["split"])
        methods = summarise(results)
        costs = summarise_costs(results)
        segmenter = self.segmenter
        own = {
            **dict.fromkeys(("prototype", PROTOTYPE_ADAPTED), _weights_mib(segmenter.backbone)),
            "model": _weights_mib(segmenter.backbone, segmenter.hed, segmenter.trained.modules),
        }
        for name in costs:
            peer = self.peers.get(name)
            costs[name]["weights_mib"] = own.get(name, own["model"]) if peer is None else peer.weights_mib
        return {
            **self.key(),
            "trained": segmenter.trained.record(),
            "root": str(plan.root),
            "protocol": PROTOCOLS[plan.dataset].text,
            "folds": [f for f in self.folds if f is not None],
            "episodes_per_class": self.episodes_per_class,
            "episodes_in": None if plan.episodes_in is None else str(plan.episodes_in),
            "checkpoint": None if plan.model.checkpoint is None else str(plan.model.checkpoint),
            "torch": torch.__version__,
            "description": self.segmenter.description,
            "episodes": len(results),
            "classes": len({result.class_name for result in results}),
            "methods": methods,
            "sweep": summarise_sweep(results, self.settings, methods) if self.settings else None,
            "costs": costs,
            "adapted": summarise_adaptations(results, methods),
            "shares": summarise_shares(results) if plan.paste_into else None,
            "kinds": {method: self._kind(method) for method in self.methods},
            "notes": self._notes(),
            "published": [
                {"mean_iou": value, **{k: getattr(row, k) for k in ("method", "backbone", "kind", "source")}}
                for row, value in published_figures(plan.dataset, split, plan.shots, fold)
            ],
        }

    def _evaluation_of(self, fold: int | None) -> Evaluation:
        if self._evaluation is None or self._evaluation[0] != fold:
            evaluation = Evaluation(
                self.segmenter,
                self.dataset(fold),
                shots=self.plan.shots,
                seed=self.plan.seed,
                methods=self.methods,
                peers=self.peers,
                settings=self.settings,
                zoom=self.plan.zoom,
                paste_into=self.plan.paste_into,
            )
            self._evaluation = (fold, evaluation)
        return self._evaluation[1]

    def _read_tasks(self, path: Path) -> list[Task]:
        about, rows = read_list(path)
        for what, mine in (("dataset", self.plan.dataset), ("shots", self.plan.shots)):
            if about.get(what) != mine:
                raise UsageError(
                    f"{path} is a list for {what} {about.get(what)}, and this run has {what} {mine}.",
                    f"Give --{what} {about.get(what)}.",
                )
        rows = [row for row in rows if row.get("fold") in self.folds]
        if not rows:
            raise InputError(f"{path} holds no episode of this fold.", "Give another --fold.")
        folds = {row["fold"] for row in rows}
        return find_tasks(path, rows, {fold: self.dataset(fold) for fold in self.folds if fold in folds})

    def _kind(self, method: str) -> str | None:
        """Which published figures a method may stand among.

        None where it saw test classes in training, or was one of many settings tried on them.
        """
        if method == "seggpt" or method in self.settings:
            return None
        if method not in ("model", ADAPTED, ZOOM, "slicing") or self.segmenter.head == "attention":
            return TRAINING_FREE
        return TRAINED if self.plan.model.checkpoint else None

    def _notes(self) -> list[str]:
        """What a reader must know before comparing."""
        notes = [NOTES[name] for name in self.plan.peers if name in NOTES]
        if self.plan.dataset in FIGURES and self.segmenter.head == "pam":
            notes.append(OWN_CHECKPOINT if self.plan.model.checkpoint else SHIPPED)
        return notes

    def _thresholds(self) -> dict[str, float]:
        known = own_thresholds(self.segmenter)
        return {method: known[method] for method in self.methods if method in known}


def _weights_mib(*parts: Any) -> float:
    """Size of networks, or of the networks a backbone holds, in memory."""
    networks: list[Any] = []
    for part in parts:
        if part is not None:
            networks += [part] if isinstance(part, nn.Module) else vars(part).values()
    tensors = {
        id(value): value.numel() * value.element_size()
        for network in networks
        if isinstance(network, nn.Module)
        for value in (*network.parameters(), *network.buffers())
    }
    return sum(tensors.values()) / 2**20
