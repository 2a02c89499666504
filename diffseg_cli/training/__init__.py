"""From a folder of classes to trained modules."""
