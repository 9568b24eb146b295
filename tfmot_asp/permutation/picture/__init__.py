"""The steps from a plan to a picture; `tfmot_asp.permutation.plot` puts them in line."""
