"""The HTTP server, its page, and the same page as static files."""
