"""Servers of the bundled model, with an index of the drawings in `docs`."""

from served import _quick_servers, icons, index, pictures, served

__all__ = ["_quick_servers", "icons", "index", "pictures", "served"]
