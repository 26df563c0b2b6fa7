"""Look at a trace table before anything is made of it."""
