"""Figures that asv records for each commit: see ../asv.conf.json."""
