"""HTTP server with captions, embeddings and search for programs, and a web page; and a static site with search."""
