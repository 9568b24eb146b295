"""Pruning with data: masks and kept weights chosen so that each kernel's outputs stay, on samples without labels.

``statistics`` gathers what a kernel's inputs look like, ``factors`` does the linear algebra that kernels reading the
same tensor share, ``selection`` chooses masks, ``refit`` the kept weights, ``reconstruct`` prunes one kernel with them.
"""
