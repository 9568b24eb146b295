"""Search for the channel order that keeps the most magnitude under an m by n mask. NumPy in, permutation out."""

from tfmot_asp.permutation.search.api import search, search_many
from tfmot_asp.permutation.search.result import SearchResult

__all__ = ["SearchResult", "search", "search_many"]
