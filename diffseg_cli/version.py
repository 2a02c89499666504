"""The version, alone in a file so that packaging and `--version` need to import nothing else."""

__version__ = "0.1.0"
