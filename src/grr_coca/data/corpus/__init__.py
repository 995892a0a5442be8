"""Work on a whole corpus: survey it, convert it to shards, draw a contact sheet."""
