"""Verbs that exchange models with other programs and with the Hugging Face hub."""
