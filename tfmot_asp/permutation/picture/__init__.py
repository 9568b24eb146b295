"""The steps from a plan to a picture; `tfmot_asp.permutation.picture.plot` puts them in line."""
