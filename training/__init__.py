"""The offline half: data, flows, losses, metrics, training and export. Needs the ``[train]`` extra (torch)."""

from .torchvision_build import mend

mend()
