"""The demo: both models trained side by side in minutes, and a report of what came out."""
