"""Turn files into batches: read pairs, decode images, tokenize captions, augment images, and load batches."""
