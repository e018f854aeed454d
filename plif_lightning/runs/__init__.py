"""What a run's folder holds: each format's writer beside its reader. Nothing else names its files."""
