"""Ranks from any launcher, the devices of this machine, local launch."""
