"""Search over learning rate and regularisation, here with Optuna or as a job of Vertex AI."""
