"""Decoding: a step-function protocol, one compiled loop, sampling rules, text in and text out."""
