"""Files of weights: where they are, how they are checked, read and written."""
