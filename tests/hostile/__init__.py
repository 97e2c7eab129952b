"""Hostile cases: mistakes, damage, strangers' files, kills; each must end in one line or in the truth, and lose nothing."""
