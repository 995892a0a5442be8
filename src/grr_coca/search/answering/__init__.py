"""Answers queries: a query becomes a vector, whose nearest pictures are found, rated and shown on a page."""
