"""From a work folder to a complete dataset folder."""
