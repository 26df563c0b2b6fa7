"""The preprocessing job on Google Cloud Dataflow: checked, packed, submitted and followed."""
