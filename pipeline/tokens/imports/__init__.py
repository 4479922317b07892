"""Token files of other programs, read piece by piece: Megatron's pairs, `.npy` arrays, bare integers."""
