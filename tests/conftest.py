"""What all tests share."""

import os

# One thread a process: tests run beside others on small machines, where threads that wait for each
# other at barriers cost far more than they give. Tests of threading set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
