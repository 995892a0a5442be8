"""HTTP: captions, embeddings and search for programs, the web page, and a site of static files that searches."""
