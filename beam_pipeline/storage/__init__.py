"""Where files lie, on this machine or on Cloud Storage."""
