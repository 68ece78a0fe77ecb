"""Restoration networks beside their official algorithms run plainly, system by system, in time and in memory."""

from saccade.bench.contest import Suite

SUITE = Suite("restoration", ((512, 512), (1920, 1080)))
run = SUITE.run
