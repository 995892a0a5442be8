"""Answers queries: what is asked for as a vector, the nearest pictures, how likely each is, and a page of them."""
