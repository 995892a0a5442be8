"""The HTTP face: captions, embeddings and search for programs and for the page."""
