"""Python imports this before all else, where its folder is on PYTHONPATH: then there is no bitsandbytes.

peft imports it, and it half of torch.compile: as much as all the rest of the Trainer.
"""

import sys

sys.modules["bitsandbytes"] = None
