"""Run a plan: find the missing runs, execute them in worker processes, and write a row for each finished stage."""
