"""RealBasicVSR (Chan et al., CVPR 2022): video super-resolution by 4 for damaged footage; see `network`."""

from saccade.restoration.realbasicvsr.cleaning import Cleaning
from saccade.restoration.realbasicvsr.network import RealBasicVSR, from_official
from saccade.restoration.realbasicvsr.spynet import SPyNet

__all__ = ["Cleaning", "RealBasicVSR", "SPyNet", "from_official"]
