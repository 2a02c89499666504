"""Images and masks in, or one sentence on what is wrong with them."""
