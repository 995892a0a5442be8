"""Data, from files to batches: sources of pairs, images, tokenizer, augmentation, order, loader and batches."""
