"""Backbones beside their official algorithms run plainly, system by system, in time and in memory; one picture."""

from saccade.bench.contest import Suite

SUITE = Suite("backbones", ((224, 224), (512, 512)))
run = SUITE.run
