"""Tools for agents, over the Model Context Protocol: search, match, and checks of names."""
