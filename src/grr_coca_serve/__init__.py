"""HTTP server for captions, embeddings and search, with a web page, and static sites that search in the browser."""
