"""Runs a plan: what is left to do, the processes that do it, and the row of each stage that has ended."""
