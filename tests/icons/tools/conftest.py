"""Servers of the model that ships, with an index of the drawings that come with the code."""

from served import _quick_servers, icons, index, pictures, served

__all__ = ["_quick_servers", "icons", "index", "pictures", "served"]
