"""python -m diffseg."""

from diffseg_cli.__main__ import main

main()
