"""What was found, in every format it can leave in."""
