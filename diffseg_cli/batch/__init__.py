"""Many images: a plan, a run that can be stopped and goes on, a manifest of what was done."""
