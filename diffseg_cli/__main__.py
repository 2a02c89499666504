"""python -m diffseg_cli."""

from diffseg_cli.cli.main import main

main()
