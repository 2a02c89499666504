"""python -m diffseg."""

from diffseg_cli.cli.main import main

main()
