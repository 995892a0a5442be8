"""The demo: both models trained side by side in minutes, with a report."""
