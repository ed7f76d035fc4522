"""Channel coupling by dye: what must leave together, found from one run of the model.

Every activation element carries the colours of the channels that made it. Operations that only move elements are executed on the
colours too; operations that mix elements have a short rule each; anything else raises and names the rule to add.
"""

from secateur.coupling.coupling import couple
from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.groups import Coupling, Group

__all__ = ["Coupling", "Dye", "Group", "couple", "rule"]
