"""Networks in and out of files: `load` opens what users bring, `save` writes a bundle without pickle.

Promise: a file is data until the user says otherwise; nothing runs that was not named. What comes back is float32,
in eval mode, finite, and known to map images of the stated shape to logits.
"""

from edgeprune.models.bundle import save
from edgeprune.models.loading import from_module, load
from edgeprune.models.preprocessing import with_preprocessing
from edgeprune.models.probing import digest
from edgeprune.models.sanity import doubt_preprocessing

__all__ = ["digest", "doubt_preprocessing", "from_module", "load", "save", "with_preprocessing"]
