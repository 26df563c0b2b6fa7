"""Runs on Vertex AI: job specifications, submitting and watching them, what the container says."""
