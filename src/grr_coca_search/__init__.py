"""An index of images: captions and embeddings in a store, searched by words and images."""
