"""Files of a run's folder, with the writer and reader of each format in one module."""
