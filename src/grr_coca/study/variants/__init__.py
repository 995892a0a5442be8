"""Models that a study compares with ours and that are no choices of the product: built by ours, then changed."""
