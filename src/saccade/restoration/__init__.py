"""Restoration and super-resolution, and the main job: `saccade.restoration.upscale`."""
