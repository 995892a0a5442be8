"""Run a plan: the agenda of missing runs, the worker processes, and the row of each finished stage."""
