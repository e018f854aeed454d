"""Signals between layers, the states of a time-step, and the protocol of a layer."""
