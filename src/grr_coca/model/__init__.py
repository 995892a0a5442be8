"""The model: one file for each box of CoCa's figure, and `build`, which chooses their parts."""
