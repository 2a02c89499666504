"""The public names of diffseg, under the name it is installed by: `from diffseg import load_segmenter`.

The code is `diffseg_cli`. Only the names in `__all__` are here and nothing else, so that no module can be
imported twice under two names. Like there, importing this imports no torch.
"""

from typing import TYPE_CHECKING, Any

import diffseg_cli
from diffseg_cli import __all__ as __all__
from diffseg_cli import __version__ as __version__

if TYPE_CHECKING:
    from diffseg_cli import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(diffseg_cli, name)
    raise AttributeError(f"module 'diffseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
