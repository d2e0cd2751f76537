"""Boxes of assets along radial, in-track and cross-track, and every passage of another object through them."""
