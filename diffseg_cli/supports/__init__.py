"""What a run is shown: concepts, masks made by hand, and whether supports help."""
