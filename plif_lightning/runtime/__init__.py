"""System-level helpers: allocator, compilation, atomic files, signals, random numbers."""
