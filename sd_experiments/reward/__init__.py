"""Reward models of images."""
