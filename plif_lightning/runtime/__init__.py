"""What the project needs of the machine: allocator, compiled loops, files that appear whole, random numbers."""
