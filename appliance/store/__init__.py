"""Content-addressed versions of folders: storing, reading, mounting, comparing, checking and collecting them.

What this keeps true: see `store.Store` and FORMAT.md, which is the promise about the bytes. The names below are the
whole interface; the modules beneath are nobody else's business.

Why: datasets, models, inputs and outputs are all trees of files; one store keeps, shares and checks them all.
"""

from appliance.store.disk import remove_folder
from appliance.store.paths import clean_path
from appliance.store.stage import Stage
from appliance.store.store import Collected, Diff, Store, Usage
from appliance.store.verify import Problem

__all__ = ["Collected", "Diff", "Problem", "Stage", "Store", "Usage", "clean_path", "remove_folder"]
