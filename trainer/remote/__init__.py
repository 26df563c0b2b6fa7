"""Run folders that lie behind a URL, and the copying of local ones there."""
