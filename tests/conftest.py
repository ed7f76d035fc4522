"""What all tests share: Hypothesis runs that repeat, and never fail for being slow on a busy machine.

``HYPOTHESIS_PROFILE=wide`` looks further, with fresh examples.
"""

import os

from hypothesis import HealthCheck, settings

_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", derandomize=True, **_PATIENT)
settings.register_profile("wide", max_examples=1000, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
