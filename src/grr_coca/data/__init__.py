"""From files to batches: sources of pairs, decoding and preprocessing of images, tokenizer, order, and collation."""
