"""Verbs that use a model: caption, embed, classify, explain."""
