"""Small servers on loopback that stand in for a cloud, for the real client libraries."""
