"""diffseg: few-shot segmentation from the shell and from Python.

The public names below are resolved on first use, so that `import diffseg_cli` and `diffseg --help`
cost nothing.
"""

from typing import TYPE_CHECKING, Any

from diffseg_cli.version import __version__

if TYPE_CHECKING:
    from diffseg_cli.assembly import load_segmenter
    from diffseg_cli.errors import DiffsegError
    from diffseg_cli.models.support import SupportFeatures
    from diffseg_cli.prediction import Prediction
    from diffseg_cli.segmenter import Segmenter
    from diffseg_cli.supports.concept import load_concept

__all__ = [
    "DiffsegError",
    "Prediction",
    "Segmenter",
    "SupportFeatures",
    "__version__",
    "load_concept",
    "load_segmenter",
]

_HOME = {
    "DiffsegError": "diffseg_cli.errors",
    "Prediction": "diffseg_cli.prediction",
    "Segmenter": "diffseg_cli.segmenter",
    "SupportFeatures": "diffseg_cli.models.support",
    "load_concept": "diffseg_cli.supports.concept",
    "load_segmenter": "diffseg_cli.assembly",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'diffseg_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
