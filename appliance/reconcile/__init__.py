"""The reconciler: what the rows want against what the engine shows.

    plan    rows and sightings to steps, pure        act    the steps, carried out

Why: level-triggered. Events only wake it; each look compares everything, so nothing that was missed stays missed.
"""

from appliance.reconcile.act import Reconciler
from appliance.reconcile.plan import LOST, Make, Note, Remove, Step, Stop, plan

__all__ = ["LOST", "Make", "Note", "Reconciler", "Remove", "Step", "Stop", "plan"]
