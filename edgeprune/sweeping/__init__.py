"""Many settings, one network: the points of a space, each a whole run, and what stands at the front of them."""
