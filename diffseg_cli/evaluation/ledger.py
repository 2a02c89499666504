"""Results of episodes on disk, a line each, so that a stopped evaluation goes on where it was.

JSON lines. The first says what the run is (everything that decides its counts), each further one is an
`EpisodeResult`. The last line may be cut off; it is measured again.
"""

import json
from pathlib import Path
from typing import Any

from diffseg_cli.errors import InputError
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.files import LineLog, whole_lines

NAME = "episodes"


def read_ledgers(out: Path, key: dict[str, Any]) -> dict[tuple[int, int, int], EpisodeResult]:
    """Results in a folder, which need not exist, by `EpisodeResult.place`, of one process or of several.

    Raises:
        InputError: they are of another run than `key` says, or damaged before their last line.
    """
    done = {}
    for path in sorted(out.glob(f"{NAME}*.jsonl")):
        try:
            with path.open("rb") as stream:
                head, *rows = [json.loads(line) for _, line in whole_lines(stream)] or [None]
            if head is not None:
                _check_key(path, head, key)
            for row in rows:
                for name in ("counts", "presence"):
                    row[name] = {method: tuple(values) for method, values in row.get(name, {}).items()}
                result = EpisodeResult(**row)
                done[result.place] = result
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a ledger that can be continued: {error}.",
                "Choose another --out, or delete it.",
            ) from error
    return done


class Ledger(LineLog):
    """A file that grows by a line per episode; use it in a `with` block.

    Of several processes that write into one folder each has a ledger of its `rank`.

    Raises:
        UsageError: another run is writing it.
        InputError: it cannot be written.
    """

    def __init__(self, out: Path, key: dict[str, Any], rank: int | None = None) -> None:
        super().__init__(out / (f"{NAME}.jsonl" if rank is None else f"{NAME}.{rank}.jsonl"))
        if self.empty:
            self.add(key)


def _check_key(path: Path, theirs: dict[str, Any], key: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(key))
    differing = [name for name in wanted if theirs.get(name) != wanted[name]]
    if differing:
        verb = "differs" if len(differing) == 1 else "differ"
        raise InputError(
            f"{path} holds the episodes of another run: {', '.join(differing)} {verb}.",
            "Choose another --out, or delete that file to start over.",
        )
