"""Seconds at a job's start in which every node is looked at and a bad one is named."""
