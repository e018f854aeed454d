"""Layers over time but neurons: norm, pools, recurrent neurons, readouts, blocks and how a block runs."""
