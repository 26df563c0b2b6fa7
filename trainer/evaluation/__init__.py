"""``python -m trainer evaluate``: predictions, metrics and how far to trust them."""
