"""These flags ask for each engine. conftest.py runs those of Triton on a card, or interprets them."""

import pytest

ENGINES = {
    "aten": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
    "capturable": {"capturable": True},
    "triton": {"fused": True},
    "triton capturable": {"fused": True, "capturable": True},
}
every_engine = pytest.mark.parametrize("flags", ENGINES.values(), ids=ENGINES)
