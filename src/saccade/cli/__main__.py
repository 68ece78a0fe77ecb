"""``python -m saccade.cli``: what torchrun starts."""

from saccade.cli import main

main()
