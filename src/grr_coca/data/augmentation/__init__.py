"""What training changes at random. This module does not import torch, so a recipe can be read without it."""

from grr_coca.data.augmentation.random_change import Augmentation, Change

__all__ = ["Augmentation", "Change"]
