"""Data: images and labels of the user's, as splits with a role.

Promise: pixels come as float32 (N, C, H, W) inside the bounds, labels are classes of the network, the same seed
picks the same samples, and a digest names exactly what was used. Refuses whatever it would have to guess.
"""

from edgeprune.data.ahead import ahead
from edgeprune.data.splits import open_split, overlap

__all__ = ["ahead", "open_split", "overlap"]
