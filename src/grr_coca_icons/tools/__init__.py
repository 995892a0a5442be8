"""Tools for agents: search, match and checks of names, by the Model Context Protocol."""
