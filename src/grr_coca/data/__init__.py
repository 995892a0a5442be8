"""From files to batches: sources of pairs, image decoding and preprocessing, tokenizer, order, collation."""
