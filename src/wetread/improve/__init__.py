"""The closed loop: from what readers signed to a better model in service, safely."""
