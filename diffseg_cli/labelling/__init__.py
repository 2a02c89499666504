"""A folder of images on its way to a labelled one: proposals, decisions, exports."""
