"""HTTP server: captions, embeddings and search for programs, the web page, and a static site with search."""
