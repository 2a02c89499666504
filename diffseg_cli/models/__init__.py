"""The networks: torch only, flat keyword arguments, no files and no config objects."""
