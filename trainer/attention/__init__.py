"""``python -m trainer attention``: where a model looks, in time and over trials."""
