"""Work on a whole corpus: survey it, convert it to shards, or draw a contact sheet."""
